"""docs/REFUSALS.md against the code: every reason, code and setting, and nothing that is not."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.config import TABLE
from app.errors import CloseCode, ErrorCode
from app.refusals import HINTS
from app.transport.http_guard import FAULTS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/REFUSALS.md").read_text()
NOT_SETTINGS = {"CONNECT", "CONNECT_ERROR", "EIO", "NAME"}
"""Words in capitals of the page that are neither."""


def rows() -> Iterator[tuple[str, str]]:
    """Reason and line of each row that has a reason."""
    for line in PAGE.splitlines():
        found = re.match(r"\| `([a-z_]+)` \|", line)
        if found:
            yield found[1], line


def reasons_in_code() -> Iterator[tuple[str, str]]:
    """Reasons that the code gives to `note`, `log`, `Refused` and their like, and where."""
    for path in sorted((ROOT / "app").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if not called.endswith(
                (
                    "refusals.note",
                    "refusals.log",
                    "note_refused",
                    "Refused",
                    "_invalid",
                    "_unavailable",
                )
            ):
                continue
            place = 0 if called.endswith(("note", "log", "note_refused")) else None
            for number, argument in enumerate(node.args):
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    word = argument.value
                    if place in (None, number) and re.fullmatch(r"[a-z_]+", word):
                        yield word, f"{path.name}:{node.lineno}"


def test_each_reason_has_one_row() -> None:
    listed = [reason for reason, _ in rows()]
    # A user at its cap has a table of its own beside the row for its name.
    assert sorted(listed) == sorted(HINTS)


def test_the_code_gives_no_other_reason() -> None:
    found = dict(reasons_in_code())
    assert len(found) > 12, "the search finds the calls"
    assert {word: place for word, place in found.items() if word not in HINTS} == {}


def test_what_the_log_names_is_in_the_row() -> None:
    lines = dict(rows())
    for reason, hint in HINTS.items():
        for setting in set(re.findall(r"[A-Z]+(?:_[A-Z]+)+", hint)) & TABLE.keys():
            if (reason, setting) != ("user", "MAX_CONNECTIONS_PER_USER"):
                assert f"`{setting}`" in lines[reason], reason


def test_the_page_names_only_what_there_is() -> None:
    known = {*TABLE, *ErrorCode.__members__, *NOT_SETTINGS}
    words = set(re.findall(r"`([A-Z][A-Z_]{2,})`", PAGE))
    assert words - known == set()
    closes = {int(code) for code in re.findall(r"\b(1\d{3}|4\d{3})\b", PAGE)}
    assert closes - {int(code) for code in CloseCode} - {1006} == set()


def test_the_page_lists_what_may_be_wrong_with_a_request() -> None:
    table = PAGE.partition("| what is wrong | for example |\n|---|---|\n")[2].partition("\n\n")[0]
    listed = [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines()]
    assert sorted(listed) == sorted({words for _, words in FAULTS})


@pytest.mark.parametrize("line", [line for _, line in rows()])
def test_statuses_fit_their_codes(line: str) -> None:
    for status, code in re.findall(r"\b([45]\d\d) `([A-Z_]+)`", line):
        assert int(status) in {ErrorCode(code).status, 429}, line
