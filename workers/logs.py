"""How log lines look: one formatter for text, one for JSON, the same for every library.

The master imports this module for gunicorn's `logconfig_dict` and the workers inherit what it
set up, so it uses the standard library alone. Anything may add fields to a line through `extra`;
the service itself uses `connection`, `request`, `user` and `worker`.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
import logging.config
import math
import re
import sys
import threading
import time
from collections.abc import Iterable
from typing import Any

_OWN = tuple(logging.makeLogRecord({}).__dict__)
"""Attributes that every record has; what came through `extra` follows them."""
_STANDARD = frozenset(_OWN) | {"message", "asctime", "taskName"}
_encode = json.JSONEncoder(ensure_ascii=False).encode
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
_HIDDEN = "***"
_LEAST_HIDDEN = 8
"""Characters of a secret that is hidden wherever it stands. A shorter one is part of other words: to hide it
would spoil the log, and show by the gaps what it is. It is hidden in its own places, as all are."""
_ODD = re.compile(r"""[="']|[^\S\x00-\x1f\x7f-\x9f]""")
"""What may pass for the end of a field: blanks, which control characters are not, as they are escaped."""
# A value in quotes, which may be escaped, as in JSON within JSON.
_QUOTED = r"""(?P<e{0}>\\*) (?P<q{0}>["']) (?: (?! (?<!\\) (?P=e{0}) (?P=q{0}) ) . )*"""
_SECRETS = re.compile(
    rf"""
      (?<=://) [^\s/@]* : [^\s/@]+ (?=@)                     # the password of a URL
    | (?P<header>                                            # a header, to the end of its value
        \b (?: (?:proxy-)?authorization | (?:set-)?cookie | x-publish-token )
        \\*["']? \s* [:=,] \s* (?: b (?=["']) )? )
      (?: {_QUOTED.format(1)} | (?: bearer | basic ) \s+ [^\s"',;]+ | .+ )
    | (?P<field>                                             # a field of a query, of JSON, of a repr
        (?: \b | (?<=_) ) (?: token | resume | pid | password | secret )
        \\*["']? \s* (?: [:=] | %3[ad] ) \s* )
      (?! \d+ (?: [\s,;)}}\]] | $ ) | must\b )               # pids of processes, settings
      (?: {_QUOTED.format(2)} | [^\s&,;"'}})\]\\\#]+ )
    | (?P<scheme> \b (?: bearer (?: [\s.] | %20 )+ | basic \s+ ) ) [^\s"',;&]+
    | \b eyJ[\w-]{{5,}} \. [\w-]+ \. [\w-]*                # a JWT anywhere
    | \b [0-9a-f-]{{36}} (?: \|[^\s"']* )? \. [0-9a-f]{{24}} \b   # a resume or pid anywhere
    """,
    re.VERBOSE | re.IGNORECASE,
)

_MARKS = (
    *("://", "authorization", "cookie", "token", "resume", "pid", "password", "secret"),
    *("bearer", "basic", "eyj"),
)
"""What a match of `_SECRETS` contains in some case, unless it is a resume or pid alone."""
_SIGNATURE = re.compile(r"\.[0-9a-fA-F]{24}")


def _may_have_secrets(text: str) -> bool:
    """Whether `_SECRETS` may match: to ask costs a tenth of the search itself."""
    if not text.isascii():
        return True  # letters outside of ASCII may match one of it
    lower = text.lower()
    return any(map(lower.__contains__, _MARKS)) or _SIGNATURE.search(text) is not None


def _hide(match: re.Match[str]) -> str:
    kept = match["header"] or match["field"] or match["scheme"] or ""
    return kept + _HIDDEN


def _quoted(value: object) -> str:
    """A value of a field; in quotes where it could pass for more than one field."""
    text = str(value)
    if type(value) is int:
        return text
    if text and _ODD.search(text) is None:
        return text
    return _encode(text)


class LineFormatter(logging.Formatter):
    """What both formats share: the fields of a line, and what never gets into one."""

    def __init__(self, *_: object, **__: object) -> None:
        # dictConfig hands over a format, which is settled here.
        super().__init__()
        self.worker: int | None = None
        self.hidden: tuple[str, ...] = ()

    def redacted(self, text: str) -> str:
        """The text without passwords and tokens."""
        for secret in self.hidden:
            text = text.replace(secret, _HIDDEN)
        return _SECRETS.sub(_hide, text) if _may_have_secrets(text) else text

    def fields(self, record: logging.LogRecord) -> dict[str, Any]:
        """What came through `extra`, and the number of this worker."""
        found: dict[str, Any] = {} if self.worker is None else {"worker": self.worker}
        further = itertools.islice(vars(record).items(), len(_OWN), None)
        found |= {name: value for name, value in further if name not in _STANDARD}
        return found

    def trouble(self, record: logging.LogRecord) -> str:
        """The traceback and the stack of a record, where it has them."""
        parts = []
        if record.exc_info:
            parts.append(self.formatException(record.exc_info))
        if record.stack_info:
            parts.append(self.formatStack(record.stack_info))
        return "\n".join(parts)


class TextFormatter(LineFormatter):
    """`<time> <level> [<pid>] <logger>: <message> <field>=<value> ...`, then a traceback.

    Control characters are escaped, tracebacks are indented, and values that hold blanks, `=` or
    quotes stand in quotes, so that no client's text can pass for a line or a field of its own.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line, and the indented lines of the traceback."""
        fields = "".join(f" {name}={_quoted(value)}" for name, value in self.fields(record).items())
        line = (
            f"{_timestamp(record.created)} {record.levelname:7} [{record.process}]"
            f" {record.name}: {record.getMessage()}{fields}"
        )
        if not line.isprintable():  # to ask costs a tenth of the translation
            line = line.translate(_CONTROLS)
        trouble = self.trouble(record).splitlines()
        return self.redacted(
            "\n".join([line, *(f"  {text.translate(_CONTROLS)}" for text in trouble)])
        )


class JsonFormatter(LineFormatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line; a field whose value is not JSON appears as its text."""
        entry: dict[str, Any] = {
            "time": _timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
        }
        entry = self.fields(record) | entry
        trouble = self.trouble(record)
        if trouble:
            entry["traceback"] = trouble
        return _encode(_each_text(entry, self.redacted))


def logconfig(level: str, style: str) -> dict[str, Any]:
    """Value of gunicorn's `logconfig_dict`: every logger writes to stderr through one formatter.

    Args:
        level: of the service's own lines, as in LOG_LEVEL.
        style: `text` or `json`, as in LOG_FORMAT.
    """
    formatter = JsonFormatter if style == "json" else TextFormatter
    # socketio and engineio add a handler of their own to a logger that has no level.
    chatty = {name: {"level": "WARNING"} for name in ("socketio.server", "engineio.server")}
    shared = {name: {"handlers": [], "propagate": True} for name in _GUNICORN}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": f"{formatter.__module__}.{formatter.__name__}"}},
        "handlers": {
            "stderr": {
                "class": "logging.StreamHandler",
                "formatter": "line",
                "stream": "ext://sys.stderr",
            }
        },
        "root": {"level": level, "handlers": ["stderr"]},
        "loggers": {**chatty, **shared, "asyncio": {"level": "WARNING"}},
    }


_GUNICORN = ("gunicorn.error", "gunicorn.access")


def set_up(level: str, style: str) -> None:
    """Let this process log as `logconfig` says, what Python writes to stderr by itself too."""
    logging.config.dictConfig(logconfig(level, style))
    logging.captureWarnings(capture=True)
    logger = logging.getLogger("python")

    def uncaught(kind: Any, error: Any, trouble: Any) -> None:
        logger.critical("An error ends this process", exc_info=(kind, error, trouble))

    def in_thread(of: threading.ExceptHookArgs) -> None:
        if of.exc_value is not None and of.exc_type is not SystemExit:
            logger.error(
                "An error ends a thread", exc_info=(of.exc_type, of.exc_value, of.exc_traceback)
            )

    def unraisable(of: Any) -> None:
        said = of.err_msg or "Exception ignored in"
        logger.error(
            "%s: %r", said, of.object, exc_info=(of.exc_type, of.exc_value, of.exc_traceback)
        )

    sys.excepthook, threading.excepthook, sys.unraisablehook = uncaught, in_thread, unraisable


def ending(reason: str) -> SystemExit:
    """The end of a process that cannot start: a line for people, or one of the log where those are JSON."""
    if any(isinstance(one.formatter, JsonFormatter) for one in logging.getLogger().handlers):
        logging.getLogger("gunicorn.error").critical("%s", reason)
        return SystemExit(1)
    return SystemExit(reason)


def enter_worker(worker: int, secrets: Iterable[str]) -> None:
    """In a worker, after the fork: add its number to each line and hide these texts."""
    hidden = {text for text in secrets if len(text) >= _LEAST_HIDDEN}
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, LineFormatter):
            handler.formatter.worker = worker
            # The longest first: one secret may be part of another.
            handler.formatter.hidden = tuple(sorted(hidden, key=len, reverse=True))


def _timestamp(seconds: float) -> str:
    return f"{_second(math.floor(seconds))}.{int(seconds % 1 * 1000):03d}Z"


@functools.lru_cache(maxsize=4)
def _second(seconds: int) -> str:
    """A full second as a text: many lines may have the same."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def _each_text(value: Any, change: Any) -> Any:
    """The value as plain JSON, with `change` applied to every text in it."""
    if isinstance(value, dict):
        return {change(str(key)): _each_text(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_each_text(item, change) for item in value]
    if (
        value is None
        or isinstance(value, bool | int)
        or (isinstance(value, float) and math.isfinite(value))
    ):
        return value
    return change(str(value))
