"""Reads the text of one setting: pure functions from text to value.

Every parser raises ValueError with a few words that say what would be right; app/config.py adds
the name of the setting and what it had.
"""

from __future__ import annotations

import ipaddress
import math
import os
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

from app import cgroups

Word = TypeVar("Word", bound=str)
TimeUnit = Literal["ms", "s"]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
AutoOrNone = Literal["auto", "0"]
Fsync = Literal["no", "everysec", "always"]
LogFormat = Literal["text", "json"]

BUILT_IN_TYPES = ("status", "stats", "health", "config", "system")
RESERVED_TYPES = frozenset({"all", "control", "error", "none"})
MAX_TYPES = 32
MAX_PUBLISH_TOKENS = 32
RESERVED_LABELS = frozenset({"clients", "default", "none"})
"""Labels of publish tokens that stand for PUBLISH_TOKEN and for writers without one."""
MAX_WORKERS = 64
LEAST_WORKERS = 2
WORKER_MEMORY = 96 * 2**20
"""Bytes that a worker needs with its share of the connections, the Valkey beside it included."""

_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"": 1, "b": 1, "k": 2**10, "m": 2**20, "g": 2**30}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(us|ms|s|m|h|d)?", re.ASCII)
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:(b)|([kmg])(?:i?b)?)?", re.ASCII | re.IGNORECASE)
_LABEL = re.compile(r"[a-z][a-z0-9_-]{0,31}", re.ASCII)
_TYPE_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}", re.ASCII)
_HOST = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?", re.ASCII)
ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>\[[0-9a-f:.]+\]|[^\[\]/:@?#\s]+)(:(?P<port>\d{1,5}|\*))?",
    re.ASCII,
)
"""An origin in lower case; only in a setting may its port be `*`."""
ORIGIN_PORTS = {"http": "80", "https": "443"}
"""Ports that browsers leave out of an origin."""


def integer(low: int, high: int) -> Callable[[str], int]:
    """An integer from `low` to `high`."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"\d{1,18}", text, re.ASCII) or not low <= int(text) <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return int(text)

    return parse


def duration(unit: TimeUnit, low: float, high: float) -> Callable[[str], float]:
    """Seconds from `low` to `high`, written as 50ms, 30s, 5m, or a bare number of `unit`."""

    def parse(text: str) -> float:
        match = _DURATION.fullmatch(text)
        if match is None:
            raise ValueError(
                f"must be a duration such as 50ms, 30s or 5m (a bare number is {unit})"
            )
        seconds = float(match[1]) * _SECONDS[match[2] or unit]
        if not low <= seconds <= high:
            raise ValueError(f"must be from {show_duration(low)} to {show_duration(high)}")
        return seconds

    return parse


def integer_seconds(low: int, high: int) -> Callable[[str], int]:
    """A duration without a fraction of a second."""
    parse_duration = duration("s", low, high)

    def parse(text: str) -> int:
        seconds = parse_duration(text)
        if not seconds.is_integer():
            raise ValueError("must be a whole number of seconds")
        return int(seconds)

    return parse


def size(low: int, high: int) -> Callable[[str], int]:
    """Bytes from `low` to `high`; KB, MB and GB count in 1024s, with or without an `i`."""

    def parse(text: str) -> int:
        match = _SIZE.fullmatch(text)
        if match is None:
            raise ValueError("must be a size such as 64MB, 512KB or a number of bytes")
        value = round(float(match[1]) * _BYTES[(match[2] or match[3] or "").lower()])
        if not low <= value <= high:
            raise ValueError(f"must be from {show_size(low)} to {show_size(high)}")
        return value

    return parse


def size_or_auto(low: int, high: int) -> Callable[[str], int]:
    """As `size`; 0 for `auto`."""
    parse = size(low, high)

    def parse_or_auto(text: str) -> int:
        return 0 if text == "auto" else parse(text)

    return parse_or_auto


def show_duration(seconds: float) -> str:
    """A duration as one would write it in a setting."""
    return f"{seconds:g}s" if seconds >= 1 or not seconds else f"{seconds * 1000:g}ms"


def show_size(value: int) -> str:
    """A size as one would write it in a setting."""
    for suffix, factor in (("GB", 2**30), ("MB", 2**20), ("KB", 2**10)):
        if value and value % factor == 0:
            return f"{value // factor}{suffix}"
    return f"{value} bytes"


def boolean(text: str) -> bool:
    """1, true, yes, on or 0, false, no, off."""
    if text.lower() in {"1", "true", "yes", "on"}:
        return True
    if text.lower() in {"0", "false", "no", "off"}:
        return False
    raise ValueError("must be 1 or 0")


def one_of(*words: Word) -> Callable[[str], Word]:
    """One of several words."""

    def parse(text: str) -> Word:
        for word in words:
            if text == word:
                return word
        raise ValueError(f"must be {', '.join(words[:-1])} or {words[-1]}")

    return parse


def log_level(text: str) -> str:
    """The name of a level of `logging`, in upper case."""
    if text.upper() not in {"DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"}:
        raise ValueError("must be debug, info, warning, error or critical")
    return text.upper()


def worker_count(root: Path = Path("/"), cores: int | None = None) -> tuple[int, str]:
    """How many workers this machine or container is for, and what decides it.

    One per core, or fraction of a core, that may be used; not more than the memory is for; at
    least two, so that one can stand in for another.

    Args:
        root: where `proc` and `sys` are.
        cores: of the machine; None: those that this process may run on.
    """
    if cores is None:
        cores = len(os.sched_getaffinity(0))
    count, reason = cores, f"{cores} cores"
    quota = cgroups.cpu_quota(root)
    if quota is not None and math.ceil(quota) < count:
        count, reason = math.ceil(quota), f"a quota of {quota:g} cores"
    memory = cgroups.memory_limit(root)
    if memory is not None and memory // WORKER_MEMORY < count:
        count, reason = memory // WORKER_MEMORY, f"a memory limit of {memory // 2**20} MB"
    if count < LEAST_WORKERS:
        return LEAST_WORKERS, f"{reason}, and at least {LEAST_WORKERS}"
    return min(count, MAX_WORKERS), reason


def workers(text: str) -> int:
    """A number of processes; `auto`: as many as `worker_count` says."""
    if text == "auto":
        count, _ = worker_count()
        return count
    try:
        return integer(1, MAX_WORKERS)(text)
    except ValueError:
        raise ValueError(f"must be auto or a whole number from 1 to {MAX_WORKERS}") from None


def bind(text: str) -> str:
    """host:port, [IPv6]:port or unix:path."""
    wrong = ValueError("must be host:port, [IPv6 address]:port or unix:path")
    if text.startswith("unix:"):
        if not text.removeprefix("unix:").strip("/"):
            raise wrong
        return text
    host, colon, port = text.rpartition(":")
    if not colon or not re.fullmatch(r"\d{1,5}", port, re.ASCII) or int(port) > 65535:
        raise wrong
    if host.startswith("[") and host.endswith("]"):
        try:
            ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            raise wrong from None
    elif not re.fullmatch(r"[A-Za-z0-9.-]+", host, re.ASCII):
        raise wrong
    return text


def names(text: str) -> tuple[str, ...]:
    """Words between commas, each once, in order; `none` is the empty list."""
    if text == "none":
        return ()
    return tuple(dict.fromkeys(word for word in (w.strip() for w in text.split(",")) if word))


def message_types(text: str) -> tuple[str, ...]:
    """The built-in types and those that `text` adds."""
    added = names(text)
    for name in added:
        if name in RESERVED_TYPES:
            raise ValueError(f"{name!r} cannot be the name of a type")
        if not _TYPE_NAME.fullmatch(name):
            raise ValueError(
                f"{name!r} must be a lower-case letter and up to 31 of a-z, 0-9, '_' and '-'"
            )
    types = tuple(dict.fromkeys(BUILT_IN_TYPES + added))
    if len(types) > MAX_TYPES:
        raise ValueError(
            f"must add at most {MAX_TYPES - len(BUILT_IN_TYPES)} types, not {len(added)}"
        )
    return types


def origins(text: str) -> tuple[str, ...]:
    """Origins as browsers send them: lower case, no default port, no slash at the end.

    A host may begin with `*.`, a port may be `*`; `null` and `*` stand alone.
    """
    return tuple(dict.fromkeys(_origin(word) for word in names(text)))


def _origin(word: str) -> str:
    if word in {"*", "null"}:
        return word
    wrong = ValueError(
        f"{word!r} must be scheme://host[:port] without a path, null or *;"
        " a host may begin with '*.', a port may be *"
    )
    match = ORIGIN.fullmatch(word.lower().removesuffix("/"))
    if match is None:
        raise wrong
    scheme, host, port = match["scheme"], match["host"], match["port"]
    if not is_host(host.removeprefix("*.")) or (port not in {None, "*"} and int(port) > 65535):
        raise wrong
    suffix = "" if port in {None, ORIGIN_PORTS.get(scheme)} else f":{port}"
    return f"{scheme}://{host}{suffix}"


def is_host(text: str) -> bool:
    """Whether a text is a name of a host, an IPv4 address, or an IPv6 address in brackets."""
    if text.startswith("["):
        try:
            ipaddress.IPv6Address(text[1:-1])
        except ValueError:
            return False
        return text.endswith("]")
    return _HOST.fullmatch(text) is not None


def hosts(text: str) -> tuple[str, ...]:
    """Names of hosts in lower case; one may begin with `*.`, and `*` is every name."""
    found = []
    for word in names(text.lower()):
        if word != "*" and not is_host(word.removeprefix("*.")):
            raise ValueError(f"{word!r} must be a host without scheme and port, *.host or *")
        found.append(word.removesuffix("."))
    return tuple(dict.fromkeys(found))


def networks(text: str) -> tuple[Network, ...]:
    """IP addresses and networks."""
    found: list[Network] = []
    for word in names(text):
        try:
            found.append(ipaddress.ip_network(word))
        except ValueError as error:
            raise ValueError(f"must be IP addresses or networks: {error}") from None
    return tuple(found)


class SentinelAddress(NamedTuple):
    """What a `redis+sentinel://` URL says."""

    sentinels: tuple[tuple[str, int], ...]
    """Host and port of each Sentinel."""
    name: str
    """Name of the primary."""
    url: str
    """`redis://` or `rediss://` with the user, password, database and options for the servers."""


class _Servers(NamedTuple):
    """The parts of a URL that names several servers."""

    scheme: str
    login: str
    """User and password with the `@` behind them, or nothing."""
    hosts: str
    path: str
    query: str
    """With the `?` before it, or nothing."""


def _split_servers(text: str) -> _Servers:
    scheme, _, rest = text.partition("://")
    rest, mark, query = rest.partition("?")
    where, _, path = rest.partition("/")
    login, at, hosts = where.rpartition("@")
    return _Servers(scheme, login + at, hosts, path, mark + query if query else "")


_SENTINEL_SCHEMES = {"redis+sentinel": "redis", "rediss+sentinel": "rediss"}
_SENTINEL_PORT = 26379


def sentinel_address(text: str) -> SentinelAddress | None:
    """The parts of `redis+sentinel://[user:password@]host[:port],.../NAME[/db][?option=value]`.

    Returns:
        None: the text is another kind of URL.

    Raises:
        ValueError: it is incomplete. The error does not contain the text, which may hold a password.
    """
    scheme, login, hosts, path, query = _split_servers(text)
    if scheme not in _SENTINEL_SCHEMES:
        return None
    name, _, database = path.strip("/").partition("/")
    if not name or (database and not database.isdigit()):
        raise ValueError
    url_of_servers = f"{_SENTINEL_SCHEMES[scheme]}://{login}primary/{database}{query}"
    return SentinelAddress(_hosts(hosts, _SENTINEL_PORT), unquote(name), url_of_servers)


class ClusterAddress(NamedTuple):
    """What a `redis+cluster://` URL says."""

    nodes: tuple[tuple[str, int], ...]
    """Host and port of some nodes, which name the others."""
    url: str
    """`redis://` or `rediss://` with the user, password and options for every node."""


_CLUSTER_SCHEMES = {"redis+cluster": "redis", "rediss+cluster": "rediss"}
_REDIS_PORT = 6379


def cluster_address(text: str) -> ClusterAddress | None:
    """The parts of `redis+cluster://[user:password@]host[:port],...[?option=value]`.

    Returns:
        None: the text is another kind of URL.

    Raises:
        ValueError: it is incomplete. The error does not contain the text, which may hold a password.
    """
    scheme, login, hosts, path, query = _split_servers(text)
    if scheme not in _CLUSTER_SCHEMES:
        return None
    if path.strip("/0"):
        raise ValueError  # a Cluster has one database
    url_of_nodes = f"{_CLUSTER_SCHEMES[scheme]}://{login}node/{query}"
    return ClusterAddress(_hosts(hosts, _REDIS_PORT), url_of_nodes)


def _hosts(text: str, port: int) -> tuple[tuple[str, int], ...]:
    """Hosts with their ports, separated by commas."""
    found = []
    for word in text.split(","):
        url = urlsplit(f"//{word}")
        if not url.hostname or url.username is not None or url.path:
            raise ValueError
        found.append((url.hostname, url.port or port))
    return tuple(found)


def backplane_url(text: str) -> str:
    """A URL that redis-py understands, one of Sentinels or of a Cluster, or nothing."""
    if not text:
        return text
    # The text may hold a password: it is in no message.
    wrong = ValueError(
        "must be redis://host[:port][/db], rediss://..., unix:///path,"
        " redis+sentinel://host[:port],.../name[/db] or redis+cluster://host[:port],..."
    )
    try:
        if sentinel_address(text) is not None or cluster_address(text) is not None:
            return text
        url = urlsplit(text)
        complete = bool(url.path.strip("/")) if url.scheme == "unix" else bool(url.hostname)
        _ = url.port
    except ValueError:
        raise wrong from None
    if url.scheme not in {"redis", "rediss", "unix"} or not complete:
        raise wrong
    if url.scheme != "unix" and not re.fullmatch(r"/?[0-9]*", url.path):
        raise wrong  # redis-py would use database 0
    return text


def token(text: str) -> str:
    """What can stand in an Authorization header."""
    if not re.fullmatch(r"[\x21-\x7e]*", text):
        raise ValueError("must be printable ASCII without spaces")
    return text


def labelled_tokens(text: str) -> tuple[tuple[str, str], ...]:
    """Labels and tokens, `label:token` between commas; the text is in no message."""
    found: list[tuple[str, str]] = []
    for number, word in enumerate(filter(None, map(str.strip, text.split(","))), 1):
        label, colon, value = word.partition(":")
        if not colon or not value or not _LABEL.fullmatch(label):
            raise ValueError(
                f"entry {number} must be label:token, the label a lower-case letter and up to 31 of"
                " a-z, 0-9, '_' and '-'"
            )
        if label in RESERVED_LABELS:
            raise ValueError(f"entry {number}: the label {label!r} has a meaning of its own")
        token(value)
        if any(value == other for _, other in found):
            raise ValueError(f"entry {number} has the token of another entry")
        found.append((label, value))
    if len(found) > MAX_PUBLISH_TOKENS:
        raise ValueError(f"must have at most {MAX_PUBLISH_TOKENS} entries")
    return tuple(found)


def jwks_url(text: str) -> str:
    """An http or https URL, or nothing."""
    if not text:
        return text
    wrong = ValueError("must be https://host[:port]/path, without a user name or a fragment")
    try:
        url = urlsplit(text)
        complete = bool(url.hostname) and (url.port or 1) > 0
    except ValueError:
        raise wrong from None
    is_plain = text.isascii() and text.isprintable() and " " not in text
    if url.scheme not in {"https", "http"} or not complete or not is_plain:
        raise wrong
    if url.username is not None or url.password is not None or "#" in text:
        raise wrong
    return text


def secret(text: str) -> str:
    """A key for HMAC-SHA256: at least 32 bytes (RFC 7518 section 3.2)."""
    length = len(text.encode())
    if 0 < length < 32:
        raise ValueError(f"must be at least 32 bytes, not {length}")
    return text


def readable_file(text: str) -> str:
    """The absolute path of a file that exists, or nothing."""
    if not text:
        return text
    path = _expand(text)
    if not path.is_file() or not os.access(path, os.R_OK):
        raise ValueError("must be a file that the service can read")
    return str(path.absolute())


def directory(text: str) -> Path:
    """The absolute path of a directory, which may be made later."""
    path = _expand(text).absolute()
    if path.exists() and not path.is_dir():
        raise ValueError("must be a directory")
    return path


def host_name(text: str) -> str:
    """A name for people, or nothing: at most 100 printable characters."""
    if len(text) > 100 or not text.isprintable():
        raise ValueError("must be at most 100 printable characters")
    return text


def _expand(text: str) -> Path:
    """A path whose leading `~` or `~user` is replaced by the home directory.

    Raises:
        ValueError: there is no such user.
    """
    expanded = os.path.expanduser(text)  # noqa: PTH111 (Path's raises RuntimeError)
    if expanded.startswith("~"):
        user = expanded.partition("/")[0]
        raise ValueError(f"has no home directory for {user}; a name with a tilde begins with ./")
    return Path(expanded)


def module(text: str) -> str:
    """The dotted name of a Python module that exists, or nothing."""
    if not text:
        return text
    try:
        found = all(part.isidentifier() for part in text.split(".")) and find_spec(text) is not None
    except (ImportError, ValueError):
        found = False
    if not found:
        raise ValueError("must be the name of a Python module that can be found")
    return text
