"""How log lines look: one formatter for text, one for JSON, the same for every library.

The master imports this module for gunicorn's `logconfig_dict` and the workers inherit what it
set up, so it uses the standard library alone. Anything may add fields to a line through `extra`;
the service itself uses `connection`, `request`, `user` and `worker`.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterable
from typing import Any

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
_HIDDEN = "***"
_SECRETS = re.compile(
    r"""
      (?<=://) [^\s/@]* : [^\s/@]+ (?=@)            # the password of a URL
    | (?<=[?&]token=) [^\s&\#"']+                   # the query of an upgrade
    | (?<=[Bb]earer[ ]) [^\s"']+                    # the Authorization header
    | \b eyJ[\w-]{5,} \. [\w-]+ \. [\w-]*           # a JWT anywhere
    """,
    re.VERBOSE,
)


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
        return _SECRETS.sub(_HIDDEN, text)

    def fields(self, record: logging.LogRecord) -> dict[str, Any]:
        """What came through `extra`, and the number of this worker."""
        found: dict[str, Any] = {} if self.worker is None else {"worker": self.worker}
        found |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
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

    Control characters are escaped and tracebacks are indented, so that no client's text can pass
    for a line of its own.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line, and the indented lines of the traceback."""
        fields = "".join(f" {name}={value}" for name, value in self.fields(record).items())
        line = (
            f"{_timestamp(record.created)} {record.levelname:7} [{record.process}]"
            f" {record.name}: {record.getMessage()}{fields}"
        ).translate(_CONTROLS)
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
        return json.dumps(_each_text(entry, self.redacted), ensure_ascii=False)


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


def enter_worker(worker: int, secrets: Iterable[str]) -> None:
    """In a worker, after the fork: add its number to each line and hide these texts."""
    # The longest first: one secret may be part of another.
    hidden = tuple(sorted({text for text in secrets if text}, key=len, reverse=True))
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, LineFormatter):
            handler.formatter.worker = worker
            handler.formatter.hidden = hidden


def _timestamp(seconds: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1000):03d}Z"


def _each_text(value: Any, change: Any) -> Any:
    """The value as plain JSON, with `change` applied to every text in it."""
    if isinstance(value, dict):
        return {change(str(key)): _each_text(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_each_text(item, change) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return change(str(value))
