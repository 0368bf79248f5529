"""The settings: defaults, every parser's edge, contradictions, .env, secrets, the table."""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path

import pytest

from app import config
from app.config import TABLE, Settings, full_backplane, load
from app.errors import SettingsError
from app.setting_values import cluster_address, sentinel_address
from scripts import settings as settings_page


def wrong(name: str, value: str, **others: str) -> str:
    """The line that stops the start; it must name the setting and stay one line."""
    with pytest.raises(SettingsError) as caught:
        load({name: value, **others})
    line = str(caught.value)
    assert line.startswith(name)
    assert "\n" not in line
    return line


def test_defaults_are_those_of_the_design() -> None:
    settings = load({})
    assert settings == Settings()
    assert settings.bind == "127.0.0.1:3001"
    assert settings.workers >= 2
    assert (settings.heartbeat_interval, settings.heartbeat_timeout) == (30, 60)
    assert (settings.max_connections_per_user, settings.max_total_connections) == (3, 10_000)
    assert (settings.broadcast_batch_size, settings.broadcast_flush_interval) == (100, 0.05)
    assert (settings.default_history_limit, settings.history_size) == (50, 1000)
    assert (settings.recovery_window, settings.history_bytes) == (60, 16 * 2**20)
    assert (settings.max_queue_size, settings.max_queue_bytes) == (10_000, 64 * 2**20)
    assert (settings.max_message_size, settings.max_incoming_bytes) == (1_048_576, 32 * 2**20)
    assert settings.message_types == ("status", "stats", "health", "config", "system")
    assert settings.latest_only_types == frozenset({"stats"})
    assert settings.default_subscriptions == ("status", "stats", "health")
    assert (settings.backplane_url, settings.backplane_fsync) == ("", "no")
    assert settings.data_dir == Path("data").absolute()
    assert (settings.drain_seconds, settings.graceful_timeout) == (20, 30)
    assert (settings.publish_token, settings.auth_secret, settings.auth_jwks_file) == ("", "", "")
    assert (settings.allowed_origins, settings.trusted_proxies) == ((), ())
    assert (settings.rate_limit, settings.collector, settings.handlers) == (100, True, "")
    assert (settings.alert_cpu, settings.alert_memory, settings.alert_disk) == (80, 80, 90)
    assert (settings.log_level, settings.log_format) == ("INFO", "text")


@pytest.mark.parametrize("name", TABLE)
def test_an_empty_value_is_the_default(name: str) -> None:
    assert load({name: " "}) == Settings()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("40", 40), ("40s", 40), ("0.5m", 30), ("1h", 3600), ("40000ms", 40), ("30 s", 30)],
)
def test_duration_in_seconds(text: str, seconds: float) -> None:
    settings = load({"HEARTBEAT_INTERVAL": text, "HEARTBEAT_TIMEOUT": "2h"})
    assert settings.heartbeat_interval == seconds


@pytest.mark.parametrize(("text", "seconds"), [("20", 0.02), ("1s", 1), ("0", 0), ("500us", 5e-4)])
def test_a_bare_flush_interval_is_milliseconds(text: str, seconds: float) -> None:
    assert load({"BROADCAST_FLUSH_INTERVAL": text}).broadcast_flush_interval == seconds


@pytest.mark.parametrize("text", ["abc", "-1", "inf", "nan", "1e3", "5 weeks", "٣", "s"])
def test_not_a_duration(text: str) -> None:
    assert "must be a duration" in wrong("HEARTBEAT_INTERVAL", text)


@pytest.mark.parametrize("text", ["0", "0.05", "2h"])
def test_duration_out_of_range(text: str) -> None:
    assert wrong("HEARTBEAT_INTERVAL", text).endswith("must be from 100ms to 3600s")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2097152", 2**21),
        ("2MB", 2**21),
        ("2MiB", 2**21),
        ("2m", 2**21),
        ("2048 kb", 2**21),
        ("0.5GB", 2**29),
        ("4096b", 4096),
    ],
)
def test_sizes(text: str, size: int) -> None:
    settings = load({"HISTORY_BYTES": text, "MAX_MESSAGE_SIZE": "1KB"})
    assert settings.history_bytes == size


@pytest.mark.parametrize("text", ["abc", "-1", "2 M B", "2TB", "mb", "1ib"])
def test_not_a_size(text: str) -> None:
    assert "must be a size" in wrong("HISTORY_BYTES", text)


def test_size_out_of_range() -> None:
    assert wrong("MAX_MESSAGE_SIZE", "0").endswith("must be from 1KB to 64MB")


@pytest.mark.parametrize("text", ["0", "101", "-5", "1.5", "ten", "1_0", "9" * 5000])
def test_integers(text: str) -> None:
    line = wrong("DEFAULT_HISTORY_LIMIT", text)
    assert line.endswith("must be a whole number from 1 to 100")
    assert len(line) < 200


def test_workers() -> None:
    assert load({"WORKERS": "64"}).workers == 64
    assert load({"WORKERS": "auto"}).workers >= 2
    for text in ("0", "65", "many"):
        assert "auto or a whole number from 1 to 64" in wrong("WORKERS", text)


@pytest.mark.parametrize(
    "text", ["0.0.0.0:3001", "localhost:0", "[::1]:65535", "unix:/run/presence.sock"]
)
def test_bind(text: str) -> None:
    assert load({"BIND": text}).bind == text


@pytest.mark.parametrize(
    "text",
    ["3001", ":3001", "host:", "host:65536", "::1:3001", "[zz]:1", "unix:", "unix:/", "http://a:1"],
)
def test_wrong_bind(text: str) -> None:
    assert "must be host:port" in wrong("BIND", text)


def test_message_types_are_added() -> None:
    settings = load({"MESSAGE_TYPES": "orders, chat_2,status,orders"})
    assert settings.message_types == (
        "status",
        "stats",
        "health",
        "config",
        "system",
        "orders",
        "chat_2",
    )


@pytest.mark.parametrize("name", ["error", "all", "control", "Caps", "2nd", "a b", "x" * 33])
def test_not_the_name_of_a_type(name: str) -> None:
    assert repr(name) in wrong("MESSAGE_TYPES", f"good,{name}")


def test_at_most_32_types() -> None:
    names = [f"t{n}" for n in range(28)]
    assert len(load({"MESSAGE_TYPES": ",".join(names[:27])}).message_types) == 32
    assert "at most 27 types, not 28" in wrong("MESSAGE_TYPES", ",".join(names))


def test_lists_of_types_know_the_added_ones() -> None:
    settings = load(
        {
            "MESSAGE_TYPES": "orders",
            "DEFAULT_SUBSCRIPTIONS": "orders,status",
            "LATEST_ONLY_TYPES": "orders",
        }
    )
    assert settings.default_subscriptions == ("orders", "status")
    assert settings.latest_only_types == frozenset({"orders"})


def test_lists_of_types_can_be_empty() -> None:
    settings = load({"DEFAULT_SUBSCRIPTIONS": "none", "LATEST_ONLY_TYPES": "none"})
    assert settings.default_subscriptions == ()
    assert settings.latest_only_types == frozenset()


@pytest.mark.parametrize("name", ["DEFAULT_SUBSCRIPTIONS", "LATEST_ONLY_TYPES"])
@pytest.mark.parametrize("type_name", ["error", "all", "control", "orders"])
def test_lists_of_types_stay_within_the_types(name: str, type_name: str) -> None:
    assert f"{type_name!r} is none of the types" in wrong(name, type_name)


@pytest.mark.parametrize(
    ("text", "origins"),
    [
        ("https://lab.yujian.team", ("https://lab.yujian.team",)),
        ("HTTPS://Lab.Example:443, http://a:8080", ("https://lab.example", "http://a:8080")),
        ("http://[::1]:3000", ("http://[::1]:3000",)),
        ("capacitor://localhost", ("capacitor://localhost",)),
        ("*", ("*",)),
    ],
)
def test_origins(text: str, origins: tuple[str, ...]) -> None:
    assert load({"ALLOWED_ORIGINS": text}).allowed_origins == origins


@pytest.mark.parametrize(
    "text",
    [
        "lab.yujian.team",
        "https://",
        "https://a/b",
        "https://a//",
        "https://*a",
        "https://a.*",
        "https://a:99999",
        "https://[::g]",
        "https://a:x",
        "//a",
        "https://u@a",
    ],
)
def test_wrong_origins(text: str) -> None:
    assert "must be scheme://host[:port]" in wrong("ALLOWED_ORIGINS", text)


@pytest.mark.parametrize(
    ("text", "origins"),
    [
        ("https://lab.yujian.team/", ("https://lab.yujian.team",)),
        ("HTTPS://Lab.Yujian.Team:443/", ("https://lab.yujian.team",)),
        ("https://*.yujian.team", ("https://*.yujian.team",)),
        ("http://localhost:*", ("http://localhost:*",)),
        ("null, http://[::1]:3000", ("null", "http://[::1]:3000")),
    ],
)
def test_origins_as_operators_write_them(text: str, origins: tuple[str, ...]) -> None:
    assert load({"ALLOWED_ORIGINS": text}).allowed_origins == origins


def test_hosts() -> None:
    allowed = load({"ALLOWED_HOSTS": "API.example, *.lab.example, [::1], 10.0.0.1"}).allowed_hosts
    assert allowed == ("api.example", "*.lab.example", "[::1]", "10.0.0.1")
    for text in ("https://a", "a:80", "a/b", "*a", "a b"):
        assert "must be a host" in wrong("ALLOWED_HOSTS", text)


def test_trusted_proxies() -> None:
    assert load({"TRUSTED_PROXIES": "10.0.0.0/8, ::1"}).trusted_proxies == (
        ipaddress.ip_network("10.0.0.0/8"),
        ipaddress.ip_network("::1/128"),
    )
    assert "10.0.0.1/8 has host bits set" in wrong("TRUSTED_PROXIES", "10.0.0.1/8")
    assert "must be IP addresses or networks" in wrong("TRUSTED_PROXIES", "caddy")


@pytest.mark.parametrize(
    "url",
    [
        "redis://h",
        "rediss://u:p@h:6380/1",
        "unix:///run/v.sock?db=1",
        "redis+sentinel://a,b:26380,[::1]:26381/lab",
        "rediss+sentinel://u:p@a/lab/1?ssl_ca_certs=/ca.pem&sentinel_password=s",
        "redis+cluster://a,b:7001,[::1]:7002",
        "rediss+cluster://u:p@a/0?ssl_ca_certs=/ca.pem",
    ],
)
def test_backplane_url(url: str) -> None:
    assert load({"BACKPLANE_URL": url}).backplane_url == url


@pytest.mark.parametrize(
    "url",
    [
        "h:6379",
        "http://:hunter2@h",
        "redis://:hunter2@",
        "redis://:hunter2@h/lab",
        "redis://:hunter2@h/0/1",
        "unix://",
        "redis+sentinel://:hunter2@a,b",
        "redis+sentinel://:hunter2@a,,b/lab",
        "redis+sentinel://:hunter2@a:x/lab",
        "redis+sentinel://:hunter2@/lab",
        "redis+sentinel://:hunter2@a/lab/x",
        "redis+cluster://:hunter2@",
        "redis+cluster://:hunter2@a,,b",
        "redis+cluster://:hunter2@a:x",
        "redis+cluster://:hunter2@a/1",
        "redis+cluster://:hunter2@a/lab",
    ],
)
def test_wrong_backplane_url_is_not_repeated(url: str) -> None:
    line = wrong("BACKPLANE_URL", url)
    assert "must be redis://" in line
    assert "hunter2" not in line


def test_the_parts_of_a_url_of_sentinels() -> None:
    assert sentinel_address("redis://h/lab") is None
    plain = sentinel_address("redis+sentinel://a,[::1]:26381/lab%2F1")
    assert plain == ((("a", 26379), ("::1", 26381)), "lab/1", "redis://primary/")
    full = sentinel_address("rediss+sentinel://u:p%40@a:1/lab/2?ssl_cert_reqs=none")
    assert full is not None
    assert full.url == "rediss://u:p%40@primary/2?ssl_cert_reqs=none"


def test_the_parts_of_a_url_of_a_cluster() -> None:
    assert cluster_address("redis://h") is None
    plain = cluster_address("redis+cluster://a,[::1]:7001")
    assert plain == ((("a", 6379), ("::1", 7001)), "redis://node/")
    full = cluster_address("rediss+cluster://u:p%40@a:1/0?ssl_cert_reqs=none")
    assert full == ((("a", 1),), "rediss://u:p%40@node/?ssl_cert_reqs=none")


def test_auth_secret_has_32_bytes() -> None:
    assert load({"AUTH_SECRET": "x" * 32}).auth_secret == "x" * 32
    assert "not 31" in wrong("AUTH_SECRET", "x" * 31)
    line = wrong("AUTH_SECRET", "hunter2")
    assert line == "AUTH_SECRET: must be at least 32 bytes, not 7"


def test_publish_token_fits_a_header() -> None:
    line = wrong("PUBLISH_TOKEN", "hunter 2")
    assert line == "PUBLISH_TOKEN: must be printable ASCII without spaces"


def test_files_and_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("keys.json").write_text("{}")
    settings = load({"AUTH_JWKS_FILE": "keys.json", "DATA_DIR": "state"})
    assert settings.auth_jwks_file == str(tmp_path / "keys.json")
    assert settings.data_dir == tmp_path / "state"
    assert "must be a file" in wrong("AUTH_JWKS_FILE", "none.json")
    assert "must be a directory" in wrong("DATA_DIR", "keys.json")


def test_a_tilde_is_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "keys.json").write_text("{}")
    settings = load({"AUTH_JWKS_FILE": "~/keys.json", "DATA_DIR": "~/state"})
    assert settings.auth_jwks_file == str(tmp_path / "keys.json")
    assert settings.data_dir == tmp_path / "state"
    monkeypatch.chdir(tmp_path)
    assert load({"DATA_DIR": "./~x"}).data_dir == tmp_path / "~x"
    too_long = "x" * 300
    for name in ("DATA_DIR", "AUTH_JWKS_FILE"):
        assert "File name too long" in wrong(name, too_long)
    assert "no home directory for ~no-such-user" in wrong("DATA_DIR", "~no-such-user/x")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("COLLECTOR", "maybe", "must be 1 or 0"),
        ("BACKPLANE_FSYNC", "yes", "must be no, everysec or always"),
        ("LOG_LEVEL", "loud", "must be debug, info"),
        ("LOG_FORMAT", "xml", "must be text or json"),
        ("GRACEFUL_TIMEOUT", "25.5", "must be a whole number of seconds"),
    ],
)
def test_other_wrong_values(name: str, text: str, expected: str) -> None:
    line = wrong(name, text)
    assert expected in line
    assert repr(text) in line


@pytest.mark.parametrize(
    "name", ["my/handlers.py", "no.such.module", "json.none", ".json", "json."]
)
def test_handlers_must_exist(name: str) -> None:
    assert "must be the name of a Python module that can be found" in wrong("HANDLERS", name)
    assert load({"HANDLERS": "json.tool"}).handlers == "json.tool"


@pytest.mark.parametrize("text", ["0", "false", "No", "OFF"])
def test_switched_off(text: str) -> None:
    assert load({"COLLECTOR": text}).collector is False


@pytest.mark.parametrize(
    ("environ", "line"),
    [
        (
            {"HEARTBEAT_INTERVAL": "60"},
            "HEARTBEAT_TIMEOUT='60s': must be more than HEARTBEAT_INTERVAL (60s)",
        ),
        ({"DRAIN_SECONDS": "30"}, "DRAIN_SECONDS='30': must be less than GRACEFUL_TIMEOUT (30s)"),
        (
            {"HISTORY_BYTES": "512KB"},
            "HISTORY_BYTES='512KB': must be at least MAX_MESSAGE_SIZE (1MB)",
        ),
        (
            {"MAX_QUEUE_BYTES": "1000KB"},
            "MAX_QUEUE_BYTES='1000KB': must be at least MAX_MESSAGE_SIZE (1MB)",
        ),
        (
            {"MAX_INCOMING_BYTES": "1048575"},
            "MAX_INCOMING_BYTES='1048575': must be at least MAX_MESSAGE_SIZE (1MB)",
        ),
    ],
)
def test_contradictions(environ: dict[str, str], line: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(environ)
    assert str(caught.value) == line


def test_environment_beats_dotenv(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("WORKERS=7\nRATE_LIMIT=5\nPUBLISH_TOKEN=a#b=c\n")
    settings = load({"WORKERS": "3", "HOME": "/root"}, dotenv)
    assert (settings.workers, settings.rate_limit) == (3, 5)
    assert settings.publish_token == "a#b=c"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('PUBLISH_TOKEN="pa"', 'PUBLISH_TOKEN contains "'),
        ("PUBLISH_TOKEN=pa'", "PUBLISH_TOKEN contains '"),
        ("PUBLISH_TOKEN=pa$$wd", "PUBLISH_TOKEN contains $"),
        ("PUBLISH_TOKEN=pa\\wd", "PUBLISH_TOKEN contains \\"),
        ("PUBLISH_TOKEN=pa`id`", "PUBLISH_TOKEN contains `"),
        ("PUBLISH_TOKEN=pa #1", "PUBLISH_TOKEN contains #"),
        ("PUBLISH_TOKEN=#1", "PUBLISH_TOKEN contains #"),
        ("PUBLISH_TOKEN= pa", "PUBLISH_TOKEN has blanks around its value"),
        ("PUBLISH_TOKEN=pa ", "PUBLISH_TOKEN has blanks around its value"),
        ("PUBLISH_TOKEN=pa\r", "it ends as on Windows (CRLF)"),
        ("PUBLISH_TOKEN=pa\x00", "it contains a control character"),
        ("PUBLISH_TOKEN=p\x1ba", "it contains a control character"),
        ("PUBLISH_TOKEN=pa\x7f", "it contains a control character"),
        ("# p\x0b", "it contains a control character"),
        ("PUBLISH_TOKEN=pa\t", "PUBLISH_TOKEN has blanks around its value"),
        ("\tPUBLISH_TOKEN=pa", "it is not NAME=value"),
        ("PUBLISH_TOKEN\t=pa", "it is not NAME=value"),
        ("PUBLISH_TOKEN=pa\t# old", "PUBLISH_TOKEN contains #"),
        ("export PUBLISH_TOKEN=pa", "it is not NAME=value"),
        ("PUBLISH_TOKEN = pa", "it is not NAME=value"),
        ("PUBLISH_TOKEN: pa", "it is not NAME=value"),
        ("; a comment of systemd", "it is not NAME=value"),
        (" # a comment", "it is not NAME=value"),
        ("COLOUR=$RED", "COLOUR contains $"),
    ],
)
def test_dotenv_is_refused_where_its_readers_differ(
    tmp_path: Path, line: str, problem: str
) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_bytes(f"# settings\n\nWORKERS=2\n{line}\nRATE_LIMIT=5\n".encode())
    with pytest.raises(SettingsError) as caught:
        load({}, dotenv)
    assert str(caught.value).startswith(f"{dotenv}, line 4: {problem}")
    assert "wd" not in str(caught.value), "no part of a secret"


@pytest.mark.parametrize("line", ["WORKERS=2", "# settings", ""])
def test_a_byte_order_mark_is_refused(tmp_path: Path, line: str) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_bytes(f"\ufeff{line}\nRATE_LIMIT=5\n".encode())
    with pytest.raises(SettingsError, match="line 1: the file begins with a byte order mark"):
        load({}, dotenv)


def test_dotenv_may_be_missing(tmp_path: Path) -> None:
    assert load({}, tmp_path / "missing") == Settings()
    assert config.unknown(tmp_path / "missing") == []


def test_dotenv_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"WORKERS=\xff\n")
    with pytest.raises(SettingsError, match="cannot be read"):
        load({}, tmp_path / ".env")


def test_unknown_settings_are_named(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("HEARTBEAT_INTERVALL=5\nCOLOUR=red\nWORKERS=2\nEMPTY\n")
    assert config.unknown(dotenv) == [
        f"{dotenv}: unknown setting HEARTBEAT_INTERVALL; did you mean HEARTBEAT_INTERVAL?",
        f"{dotenv}: unknown setting COLOUR",
        f"{dotenv}: unknown setting EMPTY",
    ]


def test_secrets_are_shown_nowhere() -> None:
    secret = "hunter2" * 5
    settings = load(
        {"AUTH_SECRET": secret, "PUBLISH_TOKEN": secret, "BACKPLANE_URL": f"redis://:{secret}@h"}
    )
    assert secret not in repr(settings)
    assert secret not in json.dumps(config.public(settings))
    assert config.public(settings)["publish_token"] == "***"
    assert config.public(Settings())["publish_token"] == ""


def test_main_prints_plain_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(".env").write_text("TRUSTED_PROXIES=10.0.0.0/8\nCOLOUR=red\n")
    assert config.main([]) == 0
    output = capsys.readouterr()
    shown = json.loads(output.out)
    assert shown["trusted_proxies"] == ["10.0.0.0/8"]
    assert shown["data_dir"] == str(tmp_path / "data")
    assert shown.keys() == {name.lower() for name in TABLE}
    assert output.err == "warning: .env: unknown setting COLOUR\n"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, []),
        ({"PUBLISH_TOKEN": "e"}, ["PUBLISH_TOKEN has"]),
        ({"PUBLISH_TOKEN": "e" * 15}, ["PUBLISH_TOKEN has"]),
        ({"PUBLISH_TOKEN": "e" * 16}, []),
        (
            {"PUBLISH_TOKEN": "e", "PUBLISH_TOKENS": f"ci:short,lab:{'l' * 16},ci:{'c' * 15}"},
            ["PUBLISH_TOKEN has", "the token of 'ci' has", "the token of 'ci' has"],
        ),
    ],
)
def test_a_token_that_can_be_guessed_is_named_and_accepted(
    settings: dict[str, str], named: list[str]
) -> None:
    warnings = config.weak(load(settings))
    assert len(warnings) == len(named)
    for warning, words in zip(warnings, named, strict=True):
        assert words in warning
        assert "`openssl rand -hex 32`" in warning
        assert "short" not in warning


def test_main_warns_of_a_token_that_can_be_guessed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(".env").write_text("PUBLISH_TOKEN=hunter2\n")
    assert config.main([]) == 0
    output = capsys.readouterr()
    assert output.err.startswith("warning: PUBLISH_TOKEN has fewer than 16 characters")
    assert "hunter2" not in output.out + output.err


def test_main_stops_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORKERS", "lots")
    assert config.main([]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == "WORKERS='lots': must be auto or a whole number from 1 to 64\n"


def test_main_prints_values(capsys: pytest.CaptureFixture[str]) -> None:
    assert config.main(["--get", "data_dir"]) == 0
    assert capsys.readouterr().out == f"{Path('data').absolute()}\n"
    assert config.main(["--get", "bind", "data_dir"]) == 0
    assert capsys.readouterr().out == f"127.0.0.1:3001\n{Path('data').absolute()}\n"
    with pytest.raises(SystemExit):
        config.main(["--get", "data_dir", "nothing"])
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "no such setting: nothing" in shown.err


def test_settings_page_has_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert config.main(["--table"]) == 0
    text = settings_page.PAGE.read_text()
    assert capsys.readouterr().out in text
    assert settings_page.fill(text) == text, "run `make settings` and commit what it changes"


def test_a_row_that_is_missing_on_the_settings_page_is_written() -> None:
    text = settings_page.PAGE.read_text()
    lines = text.splitlines(keepends=True)
    missing = "".join(line for line in lines if not line.startswith("| `WORKERS` |"))
    assert missing != text
    assert settings_page.fill(missing) == text


def test_every_number_says_what_zero_means() -> None:
    settings = Settings()
    for name, row in TABLE.items():
        value = getattr(settings, name.lower())
        assert bool(row.zero) == isinstance(value, int | float) or name == "BIND", name


def test_the_memory_of_the_backplane_must_hold_the_histories() -> None:
    assert load({}).backplane_memory == 0
    assert load({"BACKPLANE_MEMORY": "auto"}).backplane_memory == 0
    full = full_backplane(load({}))
    assert 6 * 16 * 2**20 < full < 160 * 2**20  # so that the defaults fit into 512 MB
    assert load({"BACKPLANE_MEMORY": str(full)}).backplane_memory == full
    with pytest.raises(SettingsError, match=r"BACKPLANE_MEMORY.*HISTORY_BYTES \(16MB\).*5 types"):
        load({"BACKPLANE_MEMORY": str(full - 1)})
    assert load({"BACKPLANE_MEMORY": "64MB", "HISTORY_BYTES": "2MB"})
    # It is the memory of a server of our own.
    assert load({"BACKPLANE_MEMORY": "64MB", "BACKPLANE_URL": "redis://valkey"})


def test_more_types_need_more_memory() -> None:
    names = ",".join(f"type-{n}" for n in range(27))
    assert full_backplane(load({"MESSAGE_TYPES": names})) > 33 * 16 * 2**20
