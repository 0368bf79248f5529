"""The file `.env`: what it may say, so that every program reads the same in it."""

from __future__ import annotations

import re
from pathlib import Path

from dotenv import dotenv_values

from app.errors import SettingsError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_SPECIAL = re.compile(r"[\"'$`\\]|(?:^|\s)#")


def read(path: Path) -> dict[str, str]:
    """Its values by name; none where there is no such file.

    Raises:
        SettingsError: it cannot be read.
    """
    try:
        found = dotenv_values(path, interpolate=False)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read: {error}") from None
    return {name: text or "" for name, text in found.items()}


def check(path: Path) -> None:
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
        problem = _problem(line)
        if problem:
            raise SettingsError(
                f"{path}, line {number}: {problem}; the service, Compose, systemd and scripts"
                " would interpret it differently (docs/SETTINGS.md)"
            )


def _problem(line: str) -> str:
    if line.startswith("\ufeff"):
        return "the file begins with a byte order mark"
    if "\r" in line:
        return "it ends as on Windows (CRLF)"
    if _CONTROL.search(line):
        return "it contains a control character"
    if not line.strip() or line.startswith("#"):
        return ""
    name, equals, value = line.partition("=")
    if not equals or not _NAME.fullmatch(name):
        return "it is not NAME=value (no blanks around the name, no export)"
    if value != value.strip():
        return f"{name} has blanks around its value"
    if found := _SPECIAL.search(value):
        return f"{name} contains {found[0].strip()}"
    return ""
