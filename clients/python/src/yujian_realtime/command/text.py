"""Text for a terminal: nothing of a message can control it, and nothing is wider than it."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

_CODES = {"red": "31", "green": "32", "yellow": "33", "blue": "34", "grey": "90", "bold": "1"}


def is_screen(stream: TextIO, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a stream is a terminal whose cursor can be moved."""
    return stream.isatty() and environ.get("TERM", "dumb") != "dumb"


def has_colour(stream: TextIO, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a stream is a terminal that shows colours, and they are wanted (no-color.org)."""
    return is_screen(stream, environ) and not environ.get("NO_COLOR")


def paint(text: str, colour: str, *, on: bool) -> str:
    """A text in a colour, if colours are on."""
    return f"\x1b[{_CODES[colour]}m{text}\x1b[0m" if on and text else text


def printable(text: str) -> str:
    """A text without what controls a terminal or changes the direction of what follows."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char
        if char.isprintable() and unicodedata.bidirectional(char) not in _DIRECTIONS
        else "\ufffd"
        for char in text
    )


_DIRECTIONS = {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}


def width(text: str) -> int:
    """Columns that a text takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in text
    )


def fit(text: str, columns: int) -> str:
    """A text cut to some columns."""
    if width(text) <= columns:
        return text
    taken = 0
    for place, char in enumerate(text):
        taken += width(char)
        if taken > columns - 1:
            return text[:place] + "…"
    return text


def pad(text: str, columns: int) -> str:
    """A text cut or filled to some columns."""
    text = fit(text, columns)
    return text + " " * (columns - width(text))


def compact(data: Any) -> str:
    """A JSON value on one line."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"))


def clock(milliseconds: int) -> str:
    """Time of the day here, of a Unix time in milliseconds."""
    return _local(milliseconds, "%H:%M:%S") or "--:--:--"


def moment(milliseconds: int | None) -> str:
    """Date and time here, of a Unix time in milliseconds; a dash where it is not known."""
    return (milliseconds is not None and _local(milliseconds, "%Y-%m-%d %H:%M:%S")) or "-"


def _local(milliseconds: int, form: str) -> str | None:
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC).astimezone().strftime(form)
    except (OverflowError, ValueError, OSError):
        return None


def summary(event: str, data: Any) -> str:
    """The data of a message in a few words; as JSON where its event is not known."""
    if isinstance(data, Mapping):
        if event == "status_update":
            words = _status(data)
        elif event in {"health_alert", "health_recovery"}:
            level = data.get("level", "") if event == "health_alert" else "over"
            words = [str(level), str(data.get("message") or data.get("metric") or "")]
        elif event == "stats_update":
            names = ("period", "requests", "deliveries", "errors")
            words = [f"{name} {data[name]}" for name in names if name in data]
        else:
            words = []
        if any(words):
            return "  ".join(filter(None, words))
    return compact(data)


def _status(data: Mapping[str, Any]) -> list[str]:
    words = []
    presence = data.get("presence")
    if isinstance(presence, Mapping):
        words.append(str(presence.get("state", "")))
        if presence.get("task"):
            words.append(f"“{presence['task']}”")
    for name in ("cpu", "memory", "disk"):
        value = data.get(name)
        if isinstance(value, int | float):
            words.append(f"{name} {value:.0f} %")
    if isinstance(data.get("connections"), int):
        words.append(f"connections {data['connections']}")
    return words


def duration(value: float) -> str:
    """Seconds as the two largest units: `3 d 4 h`, `12 min`, `8 s`."""
    left = max(int(value), 0)
    parts = [
        (left // 86_400, "d"),
        (left // 3600 % 24, "h"),
        (left // 60 % 60, "min"),
        (left % 60, "s"),
    ]
    shown = [f"{number} {unit}" for number, unit in parts if number]
    return " ".join(shown[:2]) or "0 s"
