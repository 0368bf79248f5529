"""Plain technical English in messages, docstrings, comments and pages, and pages that exist."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

CODE = ("app", "workers", "scripts", "benchmarks", "clients/python/src", "examples", "tests")
CODE = ("app", "workers", "scripts", "benchmarks", "clients/python/src", "examples", "tests")
SOURCES = sorted(
    [
        ROOT / "gunicorn.conf.py",
        *(path for name in CODE for path in (ROOT / name).rglob("*.py") if path != Path(__file__)),
    ]
)
PAGES = sorted(
    [
        *(
            ROOT / name
            for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md")
        ),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "clients").glob("*/README.md"),
        ROOT / "benchmarks/README.md",
    ]
)

TEXTS = sorted(
    [
        ROOT / "Makefile",
        ROOT / "Dockerfile",
        ROOT / "docker-compose.yml",
        ROOT / "caddy/Caddyfile",
        *ROOT.glob("*.sh"),
        *(ROOT / "scripts").glob("*.sh"),
        *(path for path in (ROOT / "deploy").rglob("*") if path.is_file()),
        *(path for path in (ROOT / "monitoring").rglob("*") if path.is_file()),
        ROOT / ".ci/run",
        *(ROOT / "frontend/src").rglob("*.ts*"),
        *(ROOT / "frontend/test").rglob("*.ts*"),
        *(ROOT / "clients/js/src").glob("*.ts"),
        *(ROOT / "clients/js/test").glob("*.ts"),
        *(ROOT / "benchmarks/peers/servers").glob("*.mjs"),
    ]
)
"""Scripts and configuration, whose comments and messages operators read, and what is no Python."""

WORDS = re.compile(
    r"\b(who|whom|whoever|told|hears?|heard|mend(s|ed|ing)?|whole|lone|heirs?"
    r"|nobody|somebody|everybody)\b",
    re.IGNORECASE,
)
"""Say instead: the client, the worker; reported; receives; repairs; complete; single; successor;
no client, another program, all clients."""

ALLOWED = re.compile(r"\bwhole (numbers?|seconds)\b", re.IGNORECASE)
"""Terms of mathematics."""


def texts(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of every name, comment, docstring and message; keys have no space."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value
    if not found(source.replace("_", " ")):
        return  # then no name and no comment has such a word, and to find them takes the longest
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
        elif token.type == tokenize.NAME:
            yield token.start[0], token.string.replace("_", " ")


def found(text: str) -> list[str]:
    return [match[0] for match in WORDS.finditer(ALLOWED.sub("", text))]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_code_speaks_plain_english(path: Path) -> None:
    source = path.read_text()
    assert [(line, words) for line, text in texts(source) if (words := found(text))] == []


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_scripts_and_configuration_speak_plain_english(path: Path) -> None:
    lines = enumerate(path.read_text().splitlines(), 1)
    assert [(line, words) for line, text in lines if (words := found(text))] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_pages_speak_plain_english(path: Path) -> None:
    lines = enumerate(path.read_text().replace("_", " ").splitlines(), 1)
    assert [(line, words) for line, text in lines if (words := found(text))] == []


LEVELS = {"debug": 0, "info": 0, "warning": 0, "error": 0, "exception": 0, "critical": 0, "log": 1}
"""The calls that log a line, with the place of its text among their arguments."""


def logged(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of each line of the log."""
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and "log" in ast.unparse(node.func.value)
            and len(node.args) > LEVELS.get(node.func.attr, len(node.args))
            and isinstance(text := node.args[LEVELS[node.func.attr]], ast.Constant)
        ):
            yield node.lineno, str(text.value)


def test_lines_of_the_log_begin_with_a_capital() -> None:
    """Or with a value, or the name of a file or a setting."""
    lines = [
        (path.name, line, text)
        for name in ("app", "workers")
        for path in sorted((ROOT / name).rglob("*.py"))
        for line, text in logged(path.read_text())
    ]
    assert len(lines) > 100
    assert [one for one in lines if re.match(r"[a-z]+([ :]|$)", one[2])] == []


def test_a_name_stands_for_one_class() -> None:
    """Of the service; those with an underscore are their module's own."""
    places: dict[str, list[str]] = {}
    for path in (*(ROOT / "app").rglob("*.py"), *(ROOT / "workers").rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert len(places) > 200
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


CITED = re.compile(r'\b((?:[\w.-]+/)*[A-Z][A-Z_]{3,}\.md|docs/[\w/]+\.md)(?:, "([^"\n]+)")?')


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in [
            *SOURCES,
            *TEXTS,
        ]
        if CITED.search(path.read_text())
        and path.name != "test_bench_peers.py"  # writes such files
    ],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_pages_that_are_cited_exist(path: Path) -> None:
    """By their path from the root; a part in quotes is one of their headings."""
    for name, heading in CITED.findall(path.read_text()):
        page = ROOT / name.removeprefix("opt/yujian-presence/")
        assert page.is_file(), name
        if heading:
            assert re.search(rf"^#+ {re.escape(heading)}$", page.read_text(), re.MULTILINE), heading
