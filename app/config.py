"""The settings: one table from which loading, validation and the table of docs/SETTINGS.md are made.

`python -m app.config` checks the settings of the environment and of `.env` and prints them as
JSON without the secrets, or one line on stderr and exits with 1. `--table` prints the table,
`--get name...` values of settings, one a line.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from app import dotenv_file
from app import setting_values as values
from app.command_line import make_parser
from app.errors import SettingsError
from app.setting_values import BUILT_IN_TYPES, AutoOrNone, Fsync, LogFormat, Network, TimeUnit

T = TypeVar("T")

_KEY = "setting"


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table."""

    default: str
    """As it would be written in the environment."""
    parse: Callable[[str], object]
    meaning: str
    unit: str
    zero: str
    """What zero means; empty where zero is nothing special or no number is asked for."""
    secret: bool


def _setting(
    default: str,
    parse: Callable[[str], T],
    meaning: str,
    *,
    unit: str = "",
    zero: str = "",
    secret: bool = False,
) -> T:
    row = Setting(default, parse, meaning, unit, zero, secret)
    made: T = field(default_factory=lambda: parse(default), repr=not secret, metadata={_KEY: row})
    return made


def _integer(
    default: int, low: int, high: int, meaning: str, unit: str = "", zero: str = ""
) -> int:
    zero = zero or ("not allowed" if low > 0 else "")
    return _setting(str(default), values.integer(low, high), meaning, unit=unit, zero=zero)


def _duration(
    default: str, unit: TimeUnit, low: float, high: float, meaning: str, zero: str = "not allowed"
) -> float:
    return _setting(default, values.duration(unit, low, high), meaning, unit=unit, zero=zero)


def _size(default: str, low: int, high: int, meaning: str) -> int:
    return _setting(default, values.size(low, high), meaning, unit="bytes", zero="not allowed")


LEAST_TOKEN = 16
"""Characters that a publish token should have at least: one of fewer can be guessed."""

_KB, _MB, _GB = 2**10, 2**20, 2**30
_DAY = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every setting, checked; durations in seconds, sizes in bytes.

    A field's name in upper case is the name of the environment variable.
    """

    bind: str = _setting(
        "127.0.0.1:3001",
        values.bind,
        "Address to listen on: `host:port`, `[IPv6]:port` or `unix:path`.",
        zero="port 0: any free port",
    )
    workers: int = _setting(
        "auto",
        values.workers,
        "Worker processes, 1 to 64; `auto`: one per core that the container's quota and memory limit allow, at least 2.",
        zero="not allowed",
    )
    heartbeat_interval: float = _duration(
        "30s", "s", 0.1, 3600, "Interval of pings to a client that sends nothing."
    )
    heartbeat_timeout: float = _duration(
        "60s",
        "s",
        0.2,
        7200,
        "Time without input after which a connection is closed with 4408; more than `HEARTBEAT_INTERVAL`.",
    )
    max_connections_per_user: int = _integer(
        3, 1, 65_535, "Maximum connections of one user, over all workers and machines."
    )
    max_total_connections: int = _integer(
        10_000, 1, 1_000_000, "Maximum connections of this machine, over all workers."
    )
    broadcast_batch_size: int = _integer(
        100, 1, 10_000, "Maximum messages in one flush of the fan-out.", "messages"
    )
    broadcast_flush_interval: float = _duration(
        "50ms",
        "ms",
        0,
        10,
        "Maximum batching delay during a flush; a message that arrives alone is sent immediately.",
        "no batching delay",
    )
    default_history_limit: int = _integer(
        50, 1, 100, "Messages in an answer to `get_history` without a `limit`.", "messages"
    )
    history_size: int = _integer(
        1000, 1, 1_000_000, "Newest messages of each type that history always keeps.", "messages"
    )
    recovery_window: float = _duration(
        "60s",
        "s",
        0,
        _DAY,
        "Age up to which messages are kept beyond `HISTORY_SIZE`.",
        "only `HISTORY_SIZE` applies",
    )
    history_bytes: int = _size(
        "16MB",
        _KB,
        16 * _GB,
        "Maximum size of the history of one type; at least `MAX_MESSAGE_SIZE`.",
    )
    max_queue_size: int = _integer(
        10_000,
        1,
        1_000_000,
        "Maximum messages in the broadcast queue, over all workers of the machine.",
        "messages",
    )
    max_queue_bytes: int = _size(
        "64MB",
        _KB,
        16 * _GB,
        "Maximum size of the broadcast queue, likewise; at least `MAX_MESSAGE_SIZE`.",
    )
    max_message_size: int = _size(
        "1MB", _KB, 64 * _MB, "Maximum size of a message from a client or a publisher."
    )
    max_incoming_bytes: int = _size(
        "32MB",
        _KB,
        16 * _GB,
        "Maximum input that one worker holds, at least `MAX_MESSAGE_SIZE`: incomplete messages, waiting"
        " requests, arguments of running handlers; beyond it the connection with the most is closed"
        " with 1009. Bodies of HTTP requests may be as much again; beyond it the largest is refused with 503.",
    )
    max_outgoing_bytes: int = _setting(
        "auto",
        values.size_or_auto(_MB, 64 * _GB),
        "Maximum output that one worker holds for clients that do not read, at least"
        " `MAX_MESSAGE_SIZE`; beyond it the connection with the most is closed with 4413. `auto`: an"
        " eighth of the memory available to the service, divided by `WORKERS`.",
        unit="bytes",
        zero="not allowed",
    )
    message_types: tuple[str, ...] = _setting(
        "",
        values.message_types,
        f"Types to add to {', '.join(f'`{name}`' for name in BUILT_IN_TYPES)}: comma-separated"
        " names, at most 32 types in total.",
    )
    latest_only_types: frozenset[str] = _setting(
        "stats",
        lambda text: frozenset(values.names(text)),
        "Types of which a slow client gets only the newest message; `none`: no type.",
    )
    default_subscriptions: tuple[str, ...] = _setting(
        "status,stats,health",
        values.names,
        "Types that a new connection is subscribed to; `none`: no type.",
    )
    presence_names: frozenset[str] = _setting(
        "none",
        lambda text: frozenset(values.names(text)),
        "Types whose users a client may list (`presence` with `limit`), or `all`; where clients"
        " have tokens, those with the claim `presence`. `none`: no type.",
    )
    join_leave: frozenset[str] = _setting(
        "none",
        lambda text: frozenset(values.names(text)),
        "Types whose users are announced as they come and go, or `all`: as `join` and `leave` of the"
        " type `system`, with their names, to all that may read it. `none`: no type.",
    )
    backplane_url: str = _setting(
        "",
        values.backplane_url,
        "Redis or Valkey server shared by several machines, `redis://`, `rediss://` or `unix://`, or"
        " the Sentinels that name it, `redis+sentinel://host1,host2,host3/NAME`, or some nodes of a"
        " Cluster, `redis+cluster://host1,host2`; empty: this machine runs a private Valkey.",
        secret=True,
    )
    backplane_wait: int = _setting(
        "0",
        values.integer(0, 16),
        "Replicas of the shared server that must confirm a message before its publisher gets an answer.",
        zero="none",
    )
    backplane_replica: AutoOrNone = _setting(
        "auto",
        values.one_of("auto", "0"),
        "Whether each machine reads from a replica of the shared server that it runs itself: `auto` or"
        " `0`. Not with `unix://`, `rediss://`, a Cluster and one worker.",
    )
    backplane_fsync: Fsync = _setting(
        "no",
        values.one_of("no", "everysec", "always"),
        "`appendfsync` of the private Valkey: `no`, `everysec` or `always` (survives a power cut).",
    )
    backplane_memory: int = _setting(
        "auto",
        values.size_or_auto(8 * _MB, 1024 * _GB),
        "Maximum memory of the private Valkey; beyond it publishing is refused with"
        " `BACKPLANE_FULL`. At least the size of full histories: 1.1 times `HISTORY_BYTES` for each"
        " type and one more, plus 32 MB. `auto`: that size, but at most two fifths of the memory"
        " available to the service.",
        unit="bytes",
        zero="not allowed",
    )
    data_dir: Path = _setting(
        "data", values.directory, "Directory of the private Valkey's data and of the lock files."
    )
    drain_seconds: float = _duration(
        "20s",
        "s",
        0,
        3600,
        "Time over which connections that cannot be handed over are closed; less than"
        " `GRACEFUL_TIMEOUT`.",
        "all are closed at once",
    )
    graceful_timeout: int = _setting(
        "30s",
        values.integer_seconds(1, 3600),
        "Time after which gunicorn kills a worker that does not exit after TERM; an integer.",
        unit="s",
        zero="not allowed",
    )
    publish_token: str = _setting(
        "",
        values.token,
        "Bearer token of the calls that write; without one they answer 403. One of fewer than 16"
        " characters is accepted with a warning.",
        secret=True,
    )
    publish_tokens: tuple[tuple[str, str], ...] = _setting(
        "",
        values.labelled_tokens,
        "More such tokens, `label:token` between commas; the log, metrics and budgets name the"
        " label. Several tokens may have one label: that is how one is replaced.",
        secret=True,
    )
    publish_rate_limit: int = _integer(
        0,
        0,
        1_000_000,
        "Messages that the publish tokens of one label, or one client with the claim `publish`, may"
        " publish over HTTP at each worker, ten times as many at once.",
        "per second",
        "no limit",
    )
    deflate: bool = _setting(
        "0",
        values.boolean,
        "Whether messages are compressed (permessage-deflate) for clients that offer it.",
        zero="they are not",
    )
    audit_rate: int = _integer(
        10,
        0,
        10_000,
        "Lines about calls that write which each worker logs at most; others are counted.",
        "per second",
        "no line",
    )
    auth_secret: str = _setting(
        "",
        values.secret,
        "Secret key of the clients' HS256 tokens, at least 32 bytes; if set, clients must authenticate.",
        secret=True,
    )
    auth_jwks_file: str = _setting(
        "",
        values.readable_file,
        "File with the public keys (JWKS) of the clients' tokens; if set, clients must authenticate.",
    )
    auth_jwks_url: str = _setting(
        "",
        values.jwks_url,
        "Where public keys (JWKS) of the clients' tokens are fetched, `https://` or `http://`,"
        " beside those of the file; likewise.",
        secret=True,
    )
    auth_audience: tuple[str, ...] = _setting(
        "",
        values.names,
        "Accepted audiences, comma-separated: the `aud` claim of a client's token must name one.",
    )
    auth_issuer: tuple[str, ...] = _setting(
        "",
        values.names,
        "Accepted issuers, comma-separated: the `iss` claim of a client's token must be one.",
    )
    auth_require_exp: bool = _setting(
        "0",
        values.boolean,
        "Whether a client's token must expire (`exp`).",
        zero="tokens without `exp` are accepted",
    )
    allowed_origins: tuple[str, ...] = _setting(
        "",
        values.origins,
        "Origins of other sites that may connect, `scheme://host[:port]`, comma-separated:"
        " `https://*.example.org` for subdomains, `http://localhost:*` for every port, `null`, or"
        " `*` for all. The service's own origin and clients without an `Origin` are always allowed.",
    )
    allowed_hosts: tuple[str, ...] = _setting(
        "",
        values.hosts,
        "Accepted `Host` names, comma-separated, in addition to loopback names and to all requests"
        " from `TRUSTED_PROXIES`; `*.example.org`: subdomains, `*`: all. If empty, a `BIND` on the"
        " loopback accepts no others, and any other `BIND` accepts all.",
    )
    max_connections_per_address: int = _integer(
        0,
        0,
        1_000_000,
        "Maximum WebSocket connections of one client address (IPv6: of a /64), over all workers of the machine.",
        zero="no limit",
    )
    max_connects_per_address: int = _integer(
        0, 0, 1_000_000, "Maximum WebSocket handshakes, likewise.", "per second", "no limit"
    )
    trusted_proxies: tuple[Network, ...] = _setting(
        "",
        values.networks,
        "Addresses and networks of proxies whose `X-Forwarded-*` headers are trusted, comma-separated.",
    )
    max_event_size: int = _size(
        "64KB",
        _KB,
        64 * _MB,
        "Maximum size of a Socket.IO event for `HANDLERS`, without attachments; `MAX_MESSAGE_SIZE`"
        " also applies. Requests of the protocol are limited to 16 KB.",
    )
    rate_limit: int = _integer(
        100, 0, 1_000_000, "Maximum messages from one connection.", "per second", "no limit"
    )
    http_rate_limit: int = _integer(
        100,
        0,
        1_000_000,
        "Maximum HTTP requests of one client address (IPv6: of a /64) at each worker, with bursts of"
        " ten times as many; requests with `PUBLISH_TOKEN` and WebSocket upgrades are not limited.",
        "per second",
        "no limit",
    )
    http_rate_time: float = _duration(
        "100ms",
        "ms",
        0,
        1,
        "Maximum worker time per second for these requests, likewise.",
        "no limit",
    )
    page: bool = _setting(
        "1", values.boolean, "Whether the page is served at `/`.", zero="`/` answers 404"
    )
    rate_limit_bytes: int = _setting(
        "2MB",
        values.size(0, 16 * _GB),
        "Maximum bytes per second from one connection, at least `MAX_MESSAGE_SIZE`; a connection that"
        " sends more is read more slowly, and after 15 seconds closed with 4429.",
        unit="bytes",
        zero="no limit",
    )
    rate_limit_time: float = _duration(
        "100ms",
        "ms",
        0,
        1,
        "Maximum worker time per second for the messages of one connection, likewise.",
        "no limit",
    )
    collector: bool = _setting(
        "1", values.boolean, "Whether this machine publishes its own metrics.", zero="off"
    )
    host_name: str = _setting(
        "",
        values.host_name,
        "Name of this machine in the collector's messages (`host`); empty: the host name of the system"
        " or container.",
    )
    alert_cpu: int = _integer(
        80, 1, 100, "CPU usage above which the collector raises `health_alert`; 100: never.", "%"
    )
    alert_memory: int = _integer(80, 1, 100, "Memory usage, likewise.", "%")
    alert_disk: int = _integer(90, 1, 100, "Usage of the disk of `DATA_DIR`, likewise.", "%")
    handlers: str = _setting(
        "",
        values.module,
        "Python module with the application's Socket.IO handlers; it defines `register(sio)`.",
    )
    log_level: str = _setting(
        "info",
        values.log_level,
        "Minimum level of log lines: `debug`, `info`, `warning`, `error` or `critical`.",
    )
    log_format: LogFormat = _setting(
        "text",
        values.one_of("text", "json"),
        "Format of log lines: `text`, or `json` (one object per line).",
    )

    def listed_types(self) -> frozenset[str]:
        """Types whose users clients may list."""
        return self._types_of(self.presence_names)

    def announced_types(self) -> frozenset[str]:
        """Types whose users are announced."""
        return self._types_of(self.join_leave)

    def kept_types(self) -> frozenset[str]:
        """Types whose users are kept in a list: those of both."""
        return self.listed_types() | self.announced_types()

    def _types_of(self, names: frozenset[str]) -> frozenset[str]:
        return frozenset(self.message_types) if "all" in names else names


TABLE: Mapping[str, Setting] = {item.name.upper(): item.metadata[_KEY] for item in fields(Settings)}
"""The settings by the name of their environment variable, in the order of docs/SETTINGS.md."""


def load(environ: Mapping[str, str], dotenv_path: Path | None = None) -> Settings:
    """Read and check the settings.

    A value in `environ` beats the one in the file at `dotenv_path`, which may be missing; an
    empty value is the default.

    Raises:
        SettingsError: one line that names the first wrong setting.
    """
    texts = dict(environ)
    if dotenv_path is not None:
        dotenv_file.check(dotenv_path)
        texts = dotenv_file.read(dotenv_path) | texts
    parsed: dict[str, Any] = {}
    for name, row in TABLE.items():
        text = texts.get(name, "").strip() or row.default
        try:
            parsed[name.lower()] = row.parse(text)
        except ValueError as error:
            raise _wrong(name, "" if row.secret else text, str(error)) from None
        except OSError as error:
            raise _wrong(name, text, f"cannot be used: {error.strerror}") from None
    settings = Settings(**parsed)
    for name, problem in _contradictions(settings):
        raise _wrong(name, texts.get(name, "").strip() or TABLE[name].default, problem)
    return settings


def full_backplane(settings: Settings) -> int:
    """Bytes that a Valkey takes when the histories of all types and of the workers' own are full.

    An entry takes up to a tenth more than its content; the rest is for known ids and connections.
    """
    streams = len(settings.message_types) + 1
    return streams * settings.history_bytes * 11 // 10 + 32 * _MB


def unknown(dotenv_path: Path) -> list[str]:
    """One warning for each name in the file that is no setting."""
    warnings = []
    for name in dotenv_file.read(dotenv_path):
        if name not in TABLE:
            import difflib  # noqa: PLC0415 (each worker and reload would pay for it)

            close = difflib.get_close_matches(name.upper(), TABLE, n=1, cutoff=0.8)
            hint = f"; did you mean {close[0]}?" if close else ""
            warnings.append(f"{dotenv_path}: unknown setting {name}{hint}")
    return warnings


def weak(settings: Settings) -> list[str]:
    """One warning for each publish token that can be guessed.

    It is accepted: a service must start after an upgrade with the settings that it had.
    """
    names = [("PUBLISH_TOKEN", settings.publish_token)]
    names += [
        (f"PUBLISH_TOKENS: the token of {label!r}", token)
        for label, token in settings.publish_tokens
    ]
    return [
        f"{name} has fewer than {LEAST_TOKEN} characters and can be guessed; `openssl rand -hex 32` makes a"
        " better one"
        for name, token in names
        if 0 < len(token) < LEAST_TOKEN
    ]


def public(settings: Settings) -> dict[str, object]:
    """The settings as plain JSON values; a secret that is set shows as `***`."""
    shown: dict[str, object] = {}
    for name, row in TABLE.items():
        value = getattr(settings, name.lower())
        shown[name.lower()] = ("***" if value else "") if row.secret else _plain(value)
    return shown


def secrets(settings: Settings) -> tuple[str, ...]:
    """Keys and tokens, which must be in no line of the log."""
    tokens = [token for _, token in settings.publish_tokens]
    return tuple(filter(None, (settings.publish_token, settings.auth_secret, *tokens)))


def markdown() -> str:
    """The table of the settings for docs/SETTINGS.md."""
    lines = ["| Setting | Default | Unit | Meaning | Zero |", "|---|---|---|---|---|"]
    for name, row in TABLE.items():
        default = f"`{row.default}`" if row.default else ""
        cells = (f"`{name}`", default, row.unit, row.meaning, row.zero)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _wrong(name: str, text: str, problem: str) -> SettingsError:
    had = f"={text[:80]!r}" if text else ""
    return SettingsError(f"{name}{had}: {problem}")


def _contradictions(settings: Settings) -> Iterator[tuple[str, str]]:
    if settings.heartbeat_timeout <= settings.heartbeat_interval:
        yield (
            "HEARTBEAT_TIMEOUT",
            (
                f"must be more than HEARTBEAT_INTERVAL"
                f" ({values.show_duration(settings.heartbeat_interval)})"
            ),
        )
    if settings.drain_seconds >= settings.graceful_timeout:
        yield "DRAIN_SECONDS", f"must be less than GRACEFUL_TIMEOUT ({settings.graceful_timeout}s)"
    for name in ("HISTORY_BYTES", "MAX_QUEUE_BYTES", "MAX_INCOMING_BYTES", "MAX_OUTGOING_BYTES"):
        value = getattr(settings, name.lower())
        if value < settings.max_message_size and (value or name != "MAX_OUTGOING_BYTES"):
            limit = values.show_size(settings.max_message_size)
            yield name, f"must be at least MAX_MESSAGE_SIZE ({limit})"
    full = full_backplane(settings)
    if 0 < settings.backplane_memory < full and not settings.backplane_url:
        size, history = values.show_size(full), values.show_size(settings.history_bytes)
        yield (
            "BACKPLANE_MEMORY",
            (
                f"must be at least {size}: HISTORY_BYTES ({history}) for each of the"
                f" {len(settings.message_types)} types and one more; lower HISTORY_BYTES, or have"
                " fewer MESSAGE_TYPES"
            ),
        )
    for name in ("DEFAULT_SUBSCRIPTIONS", "LATEST_ONLY_TYPES", "PRESENCE_NAMES", "JOIN_LEAVE"):
        has_all = name in {"PRESENCE_NAMES", "JOIN_LEAVE"}
        for word in sorted(getattr(settings, name.lower())):
            if word not in settings.message_types and not (has_all and word == "all"):
                types = ", ".join(settings.message_types)
                yield name, f"{word!r} is none of the types ({types}; MESSAGE_TYPES adds more)"


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | frozenset):
        items = [str(item) for item in value]
        return sorted(items) if isinstance(value, frozenset) else items
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the settings of this process and of `.env` here; see the module's docstring."""
    parser = make_parser("python -m app.config", __doc__)
    parser.add_argument("--table", action="store_true", help="print the table in Markdown")
    parser.add_argument(
        "--get", nargs="+", metavar="name", help="print the values of settings, for scripts"
    )
    options = parser.parse_args(arguments)
    if options.table:
        print(markdown())
        return 0
    dotenv_path = Path(".env")
    try:
        settings = load(os.environ, dotenv_path)
        for warning in [*unknown(dotenv_path), *weak(settings)]:
            print(f"warning: {warning}", file=sys.stderr)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 1
    shown = public(settings)
    if options.get is None:
        print(json.dumps(shown))
        return 0
    for name in options.get:
        if name not in shown:
            parser.error(f"no such setting: {name}")
    for name in options.get:
        print(shown[name])
    return 0


if __name__ == "__main__":
    sys.exit(main())
