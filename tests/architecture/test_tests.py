"""Unit tests wait for no time and start no process; no test asserts on the wall clock or is skipped."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UNIT = sorted((ROOT / "tests/unit").glob("*.py"))
CLOCKS = frozenset(
    {"time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns"}
)
PROCESSES = frozenset({"subprocess", "multiprocessing", "os.fork", "os.posix_spawn", "os.system"})

CLOCK = "asserts on the wall clock"
SKIP = "may be skipped: a missing program fails (tests/support/programs.py)"
SKIPS = frozenset({"pytest.skip", "pytest.importorskip", "pytest.mark.skip", "pytest.mark.skipif"})

EXCEPTIONS: dict[str, str] = {}
"""`file: function` of what may break a rule, and why."""


def dotted(node: ast.expr) -> str:
    """`a.b.c` of a chain of attributes; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return f"{before}.{node.attr}" if before else ""
    return ""


class Rules(ast.NodeVisitor):
    """Collects what breaks a rule, as `function: line: what`."""

    def __init__(self, tree: ast.Module) -> None:
        self.found: list[tuple[str, int, str]] = []
        self._names: dict[str, str] = {}
        self._function = ""
        self._timed: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                self._names |= {one.asname or one.name: one.name for one in node.names}
            elif isinstance(node, ast.ImportFrom):
                self._names |= {
                    one.asname or one.name: f"{node.module}.{one.name}" for one in node.names
                }
        self.visit(tree)

    def name(self, node: ast.expr) -> str:
        """The full name of what is called, by the imports of the file."""
        first, _, rest = dotted(node).partition(".")
        full = self._names.get(first, first)
        return f"{full}.{rest}" if rest else full

    def note(self, node: ast.AST, what: str) -> None:
        self.found.append((self._function, getattr(node, "lineno", 0), what))

    def is_clock(self, node: ast.AST) -> bool:
        """Whether an expression asks the wall clock, or names a duration that it gave."""
        for one in ast.walk(node):
            if isinstance(one, ast.Call):
                module, _, function = self.name(one.func).rpartition(".")
                if module == "time" and function in CLOCKS:
                    return True
                if function == "time" and "loop" in ast.unparse(one.func):
                    return True
            if isinstance(one, ast.Name) and one.id in self._timed:
                return True
        return False

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        outer = self._function, self._timed
        if not self._function:
            self._function = node.name
        self._timed = set(self._timed)
        self.generic_visit(node)
        self._function, self._timed = outer

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        difference = isinstance(node.value, ast.BinOp) and isinstance(node.value.op, ast.Sub)
        if difference and self.is_clock(node.value):
            names = [one for target in node.targets for one in ast.walk(target)]
            self._timed |= {one.id for one in names if isinstance(one, ast.Name)}

    def visit_Assert(self, node: ast.Assert) -> None:
        self.generic_visit(node)
        if self.is_clock(node.test):
            self.note(node, CLOCK)

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        name = self.name(node.func)
        if name in SKIPS:
            self.note(node, SKIP)
        if name == "time.sleep":
            self.note(node, "time.sleep")
        if name == "asyncio.sleep" and not (
            node.args and isinstance(node.args[0], ast.Constant) and node.args[0].value == 0
        ):
            self.note(node, "asyncio.sleep of more than 0")
        if any(name == one or name.startswith(f"{one}.") for one in PROCESSES):
            self.note(node, f"starts a process: {name}")


@functools.cache
def found_in(path: Path) -> list[tuple[str, int, str]]:
    """What breaks a rule in a file."""
    return Rules(ast.parse(path.read_text())).found


def violations() -> Iterator[str]:
    for path in UNIT:
        for function, line, what in found_in(path):
            if f"{path.name}: {function}" not in EXCEPTIONS:
                yield f"{path.name}:{line} {function}: {what}"


def test_unit_tests_take_no_time_and_start_nothing() -> None:
    assert list(violations()) == []


def test_no_test_asserts_on_the_wall_clock_or_is_skipped() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line} {function}: {what}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for function, line, what in found_in(path)
        if what in {CLOCK, SKIP}
    ]
    assert found == []


def test_no_exception_is_left_over() -> None:
    used = {f"{path.name}: {function}" for path in UNIT for function, _, _ in found_in(path)}
    assert set(EXCEPTIONS) <= used


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("import time\ndef test():\n    time.sleep(0.1)", "time.sleep"),
        ("from time import sleep as s\ndef test():\n    s(1)", "time.sleep"),
        ("import asyncio\nasync def test():\n    await asyncio.sleep(delay)", "asyncio.sleep of more than 0"),
        ("import time\ndef test():\n    b = time.monotonic()\n    f()\n    assert time.monotonic() - b < 1", CLOCK),
        ("import time\ndef test():\n    b = time.time()\n    f()\n    e = time.time() - b\n    assert 1 < e < 2", CLOCK),
        ("import pytest\ndef test():\n    pytest.skip('no')", SKIP),
        ("import pytest\n@pytest.mark.skipif(True, reason='no')\ndef test(): ...", SKIP),
        ("import subprocess\ndef test():\n    subprocess.run(['true'])", "starts a process: subprocess.run"),
        ("from multiprocessing import Process\ndef test():\n    Process()", "starts a process: multiprocessing.Process"),
    ],
)  # fmt: skip
def test_the_rules_see(code: str, what: str) -> None:
    assert what in [found for _, _, found in Rules(ast.parse(code)).found]


def test_the_rules_let_turns_of_the_loop_pass() -> None:
    code = "import asyncio\nasync def test():\n    await asyncio.sleep(0)\n    assert True"
    assert Rules(ast.parse(code)).found == []
