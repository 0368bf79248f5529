"""Parts are complete when their constructor returns: nothing sets an attribute of another one later.

A part is an object that lives as long as its worker. What the code does set from outside are
attributes of records: sessions, accounts, frames, and the like, which stand for one client, one
request or one message. They are known here by the names that variables for them have.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator

import pytest

from tests.architecture.test_imports import MODULES

RECORDS = {
    "account",
    "allowed",
    "batch",
    "connection",
    "episode",
    "error",
    "extra",
    "made",
    "message",
    "need_extra",
    "newcomer",
    "outcome",
    "pending",
    "question",
    "refused",
    "response",
    "session",
    "sid",
    "subscriber",
    "usage",
    "write",
}
"""Names of variables that hold a record, or of methods that return one."""

EXCEPTIONS = {
    # Counters on the hot path: a method call for each read and write would cost more than it says.
    "app.transport.connection": {"hub.bytes_sent", "hub.bytes_received", "hub.extra_frames"},
    "app.sessions.socketio.session": {"self.hub.extra_frames"},
    "app.sessions.event_stream": {"self.hub.extra_frames"},
    "app.sessions.auth": {"remote.waiting"},
    # An alternative constructor.
    "app.protocol.frames": {
        f"reader.{name}" for name in ("_buffer", "_head", "_left", "_message", "_opcode", "_total")
    },
    # Libraries, in the modules that are about them.
    "app.prometheus_private": {"library.MmapedDict", "library.ValueClass"},
    "app.transport.http_connection": {"connection._request_count"},
    "app.transport.takeover": {"protocol._message_tail"},
    "workers.logs": {
        *("handler.formatter.worker", "handler.formatter.hidden"),
        *("sys.excepthook", "sys.unraisablehook", "threading.excepthook"),
    },
    # The loop has no other place for what ends with it.
    "app.seconds": {"loop.setattr()"},
    "workers.shared.file": {"library.mmap.restype", "library.mmap.argtypes"},
    # A record of a period.
    "workers.leader.periods": {"self._coarse.rows", "self._fine.rows"},
}
"""By module: what it may set on another object nevertheless."""


def is_setter(function: ast.expr) -> bool:
    """Whether a call of it sets or deletes an attribute of its first argument."""
    names = {"setattr", "delattr", "object.__setattr__", "object.__delattr__"}
    return ast.unparse(function) in names


def targets(tree: ast.AST) -> Iterator[ast.expr]:
    """Everything that is assigned to."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.Delete):
            rest = list(node.targets)
        elif isinstance(node, ast.AugAssign | ast.AnnAssign | ast.For | ast.AsyncFor):
            rest = [node.target]
        elif isinstance(node, ast.withitem) and node.optional_vars is not None:
            rest = [node.optional_vars]
        elif isinstance(node, ast.Call) and node.args and is_setter(node.func):
            rest = [ast.Attribute(node.args[0], "setattr()", ast.Store())]
        else:
            continue
        while rest:
            target = rest.pop()
            if isinstance(target, ast.Tuple | ast.List):
                rest += target.elts
            elif isinstance(target, ast.Starred):
                rest.append(target.value)
            else:
                yield target


def receiver(target: ast.Attribute) -> str:
    """The name of what the attribute is set on; of a call, the name of the method."""
    value: ast.expr = target.value
    if isinstance(value, ast.Call):
        value = value.func
    if isinstance(value, ast.Attribute):
        return value.attr
    return value.id if isinstance(value, ast.Name) else ""


@functools.cache
def foreign(module: str) -> set[str]:
    """The attributes of other objects that a module sets."""
    found = set()
    for target in targets(ast.parse(MODULES[module].read_text())):
        if not isinstance(target, ast.Attribute):
            continue
        name = receiver(target)
        own = isinstance(target.value, ast.Name) and name in {"self", "cls"}
        if not own and name not in RECORDS:
            found.add(ast.unparse(target))
    return found


LIBRARIES = {"workers.gunicorn_private"}
"""Modules that change objects of a library, for which they stand in."""


@pytest.mark.parametrize("module", sorted(MODULES.keys() - LIBRARIES))
def test_no_attribute_of_a_part_is_set_from_outside(module: str) -> None:
    assert foreign(module) <= EXCEPTIONS.get(module, set())


@pytest.mark.parametrize(
    "code",
    [
        "part.name = 1",
        "self.part.name += 1",
        "part.name: int = 1",
        "first, (second, *part.name) = 1, (2, 3)",
        "del part.name",
        "setattr(part, 'name', 1)",
        "object.__setattr__(self.part, 'name', 1)",
        "with door() as part.name: pass",
        "for part.name in (1, 2): pass",
    ],
)
def test_every_way_to_set_one_is_seen(code: str) -> None:
    assert any(
        isinstance(target, ast.Attribute) and receiver(target) == "part"
        for target in targets(ast.parse(code))
    )


def test_every_exception_is_needed() -> None:
    unused = {
        f"{module}: {name}"
        for module, names in EXCEPTIONS.items()
        for name in names
        if name.partition(".")[0] not in RECORDS and name not in foreign(module)
    }
    assert unused == set()
