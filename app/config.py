"""The settings: one table from which loading, validation and the table of docs/SETTINGS.md are made.

`python -m app.config` checks the settings of the environment and of `.env` and prints them as
JSON without the secrets, or one line on stderr and exits with 1. `--table` prints the table,
`--get name` one value.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from dotenv import dotenv_values

from app import setting_values as values
from app.errors import SettingsError
from app.setting_values import BUILT_IN_TYPES, Fsync, LogFormat, Network, TimeUnit

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
        "Where the service listens: `host:port`, `[IPv6]:port` or `unix:path`.",
        zero="port 0: any free port",
    )
    workers: int = _setting(
        "auto",
        values.workers,
        "Worker processes, 1 to 64; `auto`: one per core that the container's quota and memory limit allow, at least 2.",
        zero="not allowed",
    )
    heartbeat_interval: float = _duration(
        "30s", "s", 0.1, 3600, "How often a silent client is pinged."
    )
    heartbeat_timeout: float = _duration(
        "60s",
        "s",
        0.2,
        7200,
        "Silence after which a client is closed with 4408; more than `HEARTBEAT_INTERVAL`.",
    )
    max_connections_per_user: int = _integer(
        3, 1, 65_535, "Connections that one user may hold, over all workers and machines."
    )
    max_total_connections: int = _integer(
        10_000, 1, 1_000_000, "Connections that this machine holds, over all workers."
    )
    broadcast_batch_size: int = _integer(
        100, 1, 10_000, "Messages that one flush of the fan-out takes at most.", "messages"
    )
    broadcast_flush_interval: float = _duration(
        "50ms",
        "ms",
        0,
        10,
        "Longest that a message waits while others are being sent; a lone one leaves at once.",
        "waits for no other",
    )
    default_history_limit: int = _integer(
        50, 1, 100, "Messages that `get_history` answers when it names no limit.", "messages"
    )
    history_size: int = _integer(
        1000, 1, 1_000_000, "Newest messages of each type that are always kept.", "messages"
    )
    recovery_window: float = _duration(
        "60s",
        "s",
        0,
        _DAY,
        "Messages younger than this are kept beyond `HISTORY_SIZE`.",
        "`HISTORY_SIZE` alone decides",
    )
    history_bytes: int = _size(
        "16MB",
        _KB,
        16 * _GB,
        "Most that the history of one type takes; at least `MAX_MESSAGE_SIZE`.",
    )
    max_queue_size: int = _integer(
        10_000,
        1,
        1_000_000,
        "Messages that wait to be stored, all workers of the machine together.",
        "messages",
    )
    max_queue_bytes: int = _size(
        "64MB", _KB, 16 * _GB, "The same in bytes; at least `MAX_MESSAGE_SIZE`."
    )
    max_message_size: int = _size(
        "1MB", _KB, 64 * _MB, "The largest message taken from a client or a publisher, inclusive."
    )
    max_incoming_bytes: int = _size(
        "32MB",
        _KB,
        16 * _GB,
        "Input that one worker holds, at least `MAX_MESSAGE_SIZE`: unfinished messages, requests that"
        " wait, what handlers work on; past it the largest holder is closed with 1009.",
    )
    max_outgoing_bytes: int = _setting(
        "auto",
        values.size_or_auto(_MB, 64 * _GB),
        "What one worker holds for clients that do not read it, at least `MAX_MESSAGE_SIZE`; past"
        " it the largest holder is closed with 4413. `auto`: an eighth of the memory that the"
        " service may use, divided by `WORKERS`.",
        unit="bytes",
        zero="not allowed",
    )
    message_types: tuple[str, ...] = _setting(
        "",
        values.message_types,
        f"Types to add to {', '.join(f'`{name}`' for name in BUILT_IN_TYPES)}: names between"
        " commas, 32 types in all.",
    )
    latest_only_types: frozenset[str] = _setting(
        "stats",
        lambda text: frozenset(values.names(text)),
        "Types of which a client that fell behind gets the newest message only; `none`: no type.",
    )
    default_subscriptions: tuple[str, ...] = _setting(
        "status,stats,health",
        values.names,
        "What a new connection is subscribed to; `none`: nothing.",
    )
    backplane_url: str = _setting(
        "",
        values.backplane_url,
        "A Redis or Valkey that several machines share, `redis://`, `rediss://` or `unix://`;"
        " without it this machine runs a private Valkey.",
        secret=True,
    )
    backplane_fsync: Fsync = _setting(
        "no",
        values.fsync,
        "`appendfsync` of the private Valkey: `no`, `everysec` or `always` (survives a power cut).",
    )
    backplane_memory: int = _setting(
        "auto",
        values.size_or_auto(8 * _MB, 1024 * _GB),
        "Most memory of the private Valkey; past it publishing is refused with `BACKPLANE_FULL`. At"
        " least what full histories take: 1.1 times `HISTORY_BYTES` for each type and one more, and"
        " 32 MB. `auto`: that, but no more than two fifths of the memory that the service may use.",
        unit="bytes",
        zero="not allowed",
    )
    data_dir: Path = _setting(
        "data", values.directory, "Directory of the private Valkey's file and of the lock files."
    )
    drain_seconds: float = _duration(
        "20s",
        "s",
        0,
        3600,
        "Time over which connections that cannot be handed over are closed; less than"
        " `GRACEFUL_TIMEOUT`.",
        "all at once",
    )
    graceful_timeout: int = _setting(
        "30s",
        values.whole_seconds(1, 3600),
        "Time after which gunicorn kills a worker that was told to leave; whole seconds.",
        unit="s",
        zero="not allowed",
    )
    publish_token: str = _setting(
        "",
        values.token,
        "Bearer token of the calls that write; without one they answer 403.",
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
        "Key of the clients' HS256 tokens, at least 32 bytes; with it every client needs a token.",
        secret=True,
    )
    auth_jwks_file: str = _setting(
        "",
        values.readable_file,
        "File with the public keys (JWKS) of the clients' tokens, likewise.",
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
        "Audiences between commas, one of which the `aud` claim of a client's token must name.",
    )
    auth_issuer: tuple[str, ...] = _setting(
        "",
        values.names,
        "Issuers between commas, one of which the `iss` claim of a client's token must be.",
    )
    auth_require_exp: bool = _setting(
        "0",
        values.boolean,
        "Whether a client's token must have an end (`exp`).",
        zero="it may last for ever",
    )
    allowed_origins: tuple[str, ...] = _setting(
        "",
        values.origins,
        "Origins of other sites' pages that may connect, `scheme://host[:port]` between commas:"
        " `https://*.example.org` for subdomains, `http://localhost:*` for every port, `null`, or"
        " `*` for all. The service's own origin, and clients that send none, always may.",
    )
    allowed_hosts: tuple[str, ...] = _setting(
        "",
        values.hosts,
        "Host names that are served, between commas, besides those of the loopback and whatever"
        " `TRUSTED_PROXIES` ask for; `*.example.org`: subdomains, `*`: all. Without it a `BIND` on"
        " the loopback serves no others, and any other `BIND` serves all.",
    )
    max_connections_per_address: int = _integer(
        0,
        0,
        1_000_000,
        "WebSocket connections of one client address (IPv6: of a /64) at each worker.",
        zero="no limit",
    )
    max_connects_per_address: int = _integer(
        0, 0, 1_000_000, "The same for handshakes.", "per second", "no limit"
    )
    trusted_proxies: tuple[Network, ...] = _setting(
        "",
        values.networks,
        "Addresses and networks whose `X-Forwarded-*` headers are believed.",
    )
    max_event_size: int = _size(
        "64KB",
        _KB,
        64 * _MB,
        "The largest Socket.IO event for `HANDLERS`, without attachments; at most"
        " `MAX_MESSAGE_SIZE` counts. Requests of the protocol are at most 16 KB.",
    )
    rate_limit: int = _integer(
        100, 0, 1_000_000, "Messages that a connection may send.", "per second", "no limit"
    )
    http_rate_limit: int = _integer(
        100,
        0,
        1_000_000,
        "Requests over HTTP of one client address (IPv6: of a /64) at each worker, ten times as many"
        " at once; those with `PUBLISH_TOKEN` and WebSocket upgrades do not count.",
        "per second",
        "no limit",
    )
    http_rate_time: float = _duration(
        "100ms",
        "ms",
        0,
        1,
        "Time of a worker per second that these requests may take, likewise.",
        "no limit",
    )
    page: bool = _setting(
        "1", values.boolean, "Whether the page is served at `/`.", zero="`/` is not found"
    )
    rate_limit_bytes: int = _setting(
        "2MB",
        values.size(0, 16 * _GB),
        "Bytes that a connection may send per second, at least `MAX_MESSAGE_SIZE`; reading from one"
        " that sends more is slowed down, and in the end it is closed with 4429.",
        unit="bytes",
        zero="no limit",
    )
    rate_limit_time: float = _duration(
        "100ms",
        "ms",
        0,
        1,
        "Time of a worker per second that the messages of a connection may take, likewise.",
        "no limit",
    )
    collector: bool = _setting(
        "1", values.boolean, "Whether this machine publishes its own figures.", zero="it does not"
    )
    host_name: str = _setting(
        "",
        values.host_name,
        "Name of this machine in what the collector publishes (`host`); empty: the system's, which in a"
        " container is the container's.",
    )
    alert_cpu: int = _integer(
        80, 1, 100, "CPU usage above which the collector raises `health_alert`; 100: never.", "%"
    )
    alert_memory: int = _integer(80, 1, 100, "The same for memory.", "%")
    alert_disk: int = _integer(90, 1, 100, "The same for the disk of `DATA_DIR`.", "%")
    handlers: str = _setting(
        "", values.module, "Python module with your Socket.IO handlers: it has `register(sio)`."
    )
    log_level: str = _setting(
        "info", values.log_level, "`debug`, `info`, `warning`, `error` or `critical`."
    )
    log_format: LogFormat = _setting(
        "text", values.log_format, "`text`, or `json`: one object a line."
    )


TABLE: Mapping[str, Setting] = {item.name.upper(): item.metadata[_KEY] for item in fields(Settings)}
"""The settings by the name of their environment variable, in the order of docs/SETTINGS.md."""


_DOTENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_DOTENV_SPECIAL = re.compile(r"[\"'$`\\]|(?:^|\s)#")


def load(environ: Mapping[str, str], dotenv_path: Path | None = None) -> Settings:
    """Read and check the settings.

    A value in `environ` beats the one in the file at `dotenv_path`, which may be missing; an
    empty value is the default.

    Raises:
        SettingsError: one line that names the first wrong setting.
    """
    if dotenv_path is not None:
        _check_dotenv(dotenv_path)
    texts = {**_read(dotenv_path), **environ}
    parsed: dict[str, Any] = {}
    for name, row in TABLE.items():
        text = texts.get(name, "").strip() or row.default
        try:
            parsed[name.lower()] = row.parse(text)
        except ValueError as error:
            raise _wrong(name, "" if row.secret else text, str(error)) from None
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
    for name in _read(dotenv_path):
        if name not in TABLE:
            close = difflib.get_close_matches(name.upper(), TABLE, n=1, cutoff=0.8)
            hint = f"; did you mean {close[0]}?" if close else ""
            warnings.append(f"{dotenv_path}: unknown setting {name}{hint}")
    return warnings


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


def _read(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    try:
        found = dotenv_values(path, interpolate=False)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read: {error}") from None
    return {name: text or "" for name, text in found.items()}


def _check_dotenv(path: Path) -> None:
    """Refuse what the readers of one file would read differently.

    Beside this service they are Compose, which takes `$` for a variable, systemd, for which `#`
    within a line and backslashes are other things, and scripts, which know no quotes.

    Raises:
        SettingsError: names the line and the setting, not its value.
    """
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read: {error}") from None
    for number, line in enumerate(text.split("\n"), 1):
        problem = _dotenv_problem(line)
        if problem:
            raise SettingsError(
                f"{path}, line {number}: {problem}; the service, Compose, systemd and scripts"
                " would read it differently (docs/SETTINGS.md)"
            )


def _dotenv_problem(line: str) -> str:
    if "\r" in line:
        return "it ends as on Windows (CRLF)"
    if not line.strip() or line.startswith("#"):
        return ""
    name, equals, value = line.partition("=")
    if not equals or not _DOTENV_NAME.fullmatch(name):
        return "it is not NAME=value (no blanks around the name, no export)"
    if value != value.strip():
        return f"{name} has blanks around its value"
    if found := _DOTENV_SPECIAL.search(value):
        return f"{name} contains {found[0].strip()}"
    return ""


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
    for name in ("DEFAULT_SUBSCRIPTIONS", "LATEST_ONLY_TYPES"):
        for word in sorted(getattr(settings, name.lower())):
            if word not in settings.message_types:
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
    parser = argparse.ArgumentParser(prog="python -m app.config", description=__doc__)
    parser.add_argument("--table", action="store_true", help="print the table in Markdown")
    parser.add_argument("--get", metavar="name", help="print one setting alone, for scripts")
    options = parser.parse_args(arguments)
    if options.table:
        print(markdown())
        return 0
    dotenv_path = Path(".env")
    try:
        settings = load(os.environ, dotenv_path)
        for warning in unknown(dotenv_path):
            print(f"warning: {warning}", file=sys.stderr)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 1
    shown = public(settings)
    if options.get is None:
        print(json.dumps(shown))
    elif options.get in shown:
        print(shown[options.get])
    else:
        parser.error(f"no such setting: {options.get}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
