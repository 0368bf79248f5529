"""Which way imports may point, read from the code; and what the master holds, by running it."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Package or module -> what it must not import.
FORBIDDEN = {
    "app": {"workers", "gunicorn"},
    "app.protocol": {
        "asyncio",
        "aiohttp",
        "uvloop",
        "redis",
        "engineio",
        "app.backplane",
        "app.broadcast",
        "app.config",
        "app.http",
        "app.sessions",
        "app.transport",
    },
    "app.transport": {"app.sessions", "app.broadcast", "app.backplane", "app.http"},
    "app.backplane": {
        "app.sessions",
        "app.broadcast",
        "app.transport",
        "app.http",
        "aiohttp",
        "socketio",
    },
    "app.broadcast": {"app.sessions", "app.http", "aiohttp", "socketio", "engineio"},
    "app.sessions": {"app.http"},
}
LEAVES = {
    "app.errors": set[str](),
    "app.types": set[str](),
    "app.cgroups": set[str](),
    "app.setting_values": {"app.cgroups"},
    "app.ports": {"app.types"},
    "app.dotenv_file": {"app.errors"},
    "app.command_line": set[str](),
    "app.config": {"app.command_line", "app.dotenv_file", "app.errors", "app.setting_values"},
}
"""Modules that everything builds on, and all of `app` that they may import."""

MASTER = {
    "workers.reload",
    "workers.reload.fingerprint",
    "workers.gunicorn_private",
    "workers.gunicorn_worker",
    "workers.logs",
    "workers.master",
    "workers.shared",
    "workers.shared.listening",
    "workers.shared.locks",
    "workers.shared.paths",
    "workers.shared.polling",
    "workers.shared.processes",
    "workers.shared.file",
    "workers.shared.recent",
    "workers.shared.slots",
    "workers.shared.users",
}
"""Modules of this repository that the gunicorn master may hold: HUP does not renew them."""


def modules() -> dict[str, Path]:
    found = {}
    for package in ("app", "workers"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


@functools.cache
def imports(module: str) -> tuple[str, ...]:
    """Every name that a module imports, those inside functions and for types included."""
    path = MODULES[module]
    nodes: list[ast.AST] = [ast.parse(path.read_text())]
    found: list[str] = []
    while nodes:
        node = nodes.pop()
        nodes.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".") if path.stem == "__init__" else module.split(".")[:-1]
                parents = package[: len(package) - node.level + 1]
                base = ".".join([*parents, *([base] if base else [])])
            found += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return tuple(found)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def test_there_is_something_to_check() -> None:
    assert "app.config" in MODULES
    assert set(imports("app.config")) >= {"json", "app.errors", "app.errors.SettingsError"}


@pytest.mark.parametrize("package", FORBIDDEN)
def test_direction(package: str) -> None:
    wrong = [
        f"{module} imports {name}"
        for module in MODULES
        if within(module, package)
        for name in imports(module)
        if any(within(name, other) for other in FORBIDDEN[package])
    ]
    assert wrong == []


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaves(leaf: str) -> None:
    allowed = {"app", *LEAVES[leaf]}
    assert {name for name in imports(leaf) if name in MODULES and name not in allowed} == set()


def test_only_the_entry_point_puts_everything_together() -> None:
    importers = {
        module
        for module in MODULES
        if within(module, "app") and any(within(name, "app.main") for name in imports(module))
    }
    assert importers <= {"app.main"}


def test_no_cycles() -> None:
    edges = {
        module: {
            other
            for name in imports(module)
            for other in (name, name.rpartition(".")[0])
            if other in MODULES and other != module
        }
        for module in MODULES
    }
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"import cycle: {' -> '.join([*path, module])}"
        if module not in done:
            for other in edges[module]:
                visit(other, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


def test_the_master_holds_nothing_that_hup_must_renew() -> None:
    """Load the configuration as gunicorn's master does, with its worker class."""
    code = """
import sys
from gunicorn.app.wsgiapp import WSGIApplication
sys.argv = ["gunicorn", "-c", "gunicorn.conf.py"]
application = WSGIApplication()
application.cfg.worker_class
print(*sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    held = {
        name
        for name in done.stdout.split()
        if within(name, "app") or (within(name, "workers") and name != "workers")
    }
    assert held <= MASTER
