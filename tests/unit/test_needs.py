"""What is asked of a server at the start is what the service uses of it."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
from pathlib import Path

from app import backplane
from app.backplane.needs import CHECKS, KEYS, access_rules, needs
from app.backplane.scripts import Script
from app.config import Settings

ROOT = Path(__file__).parents[2]
DEPLOYMENT = (ROOT / "docs/operations/DEPLOYMENT.md").read_text().replace("\\|", "|")
CONTAINERS = {"client", "cluster", "script", "xinfo", "acl", "command", "config"}
NOT_NEEDED = {"config|get", "prefix"}
"""Used where it is allowed, and a word of another command."""

SERVER = Settings(backplane_url="redis://server")
ALL = dataclasses.replace(
    SERVER, backplane_wait=1, presence_names=frozenset({"all"}), join_leave=frozenset({"all"})
)
CLUSTER = dataclasses.replace(ALL, backplane_url="redis+cluster://node")


def name(first: str, second: str) -> str:
    return f"{first}|{second}".lower() if first.lower() in CONTAINERS else first.lower()


def used() -> set[str]:
    """Commands in scripts, and in calls of the backplane's modules."""
    found: set[str] = set()
    for module in pkgutil.walk_packages(backplane.__path__, "app.backplane."):
        if module.name.endswith(".needs"):
            continue
        loaded = importlib.import_module(module.name)
        for value in vars(loaded).values():
            if isinstance(value, Script):
                text = value.source.decode()
                calls = re.findall(r"(?:call|add)\(\s*'([A-Z]+)'(?:, '([A-Z]+)')?", text)
                found |= {name(*call) for call in calls}
                # A command that is a word of the caller's: see `scripts.PAGE`.
                found |= {"xrange", "xrevrange"} if "redis.call(command" in text else set()
        text = Path(str(loaded.__file__)).read_text()
        calls = re.findall(r"\(\s*b\"([A-Z]+)\",?(?:\s*b\"([A-Z]+)\")?", text)
        found |= {name(*call) for call in calls}
    return found


def test_all_that_is_used_is_asked_for() -> None:
    asked = {need.command for need in (*needs(ALL, replica=True), *needs(CLUSTER, replica=False))}
    missing = used() - asked - set(CHECKS) - NOT_NEEDED
    assert not missing
    assert {"xadd", "zrangebylex", "hrandfield", "script|load", "client|tracking"} <= asked


def test_each_command_is_asked_for_once() -> None:
    for settings in (SERVER, ALL, CLUSTER):
        commands = [need.command for need in needs(settings, replica=True)]
        assert len(commands) == len(set(commands))


def test_a_database_has_to_be_chosen() -> None:
    for url, is_needed in (
        ("redis://server/0", False),
        ("redis://server", False),
        ("redis://server/2", True),
        ("redis+sentinel://one,two/lab/3", True),
        ("redis+sentinel://one,two/lab", False),
        ("redis+cluster://node", False),
    ):
        settings = dataclasses.replace(SERVER, backplane_url=url)
        commands = {need.command for need in needs(settings, replica=False)}
        assert ("select" in commands) is is_needed, url


def test_the_rules_of_the_documentation_are_those_that_are_checked() -> None:
    documented = set(re.findall(r"`(\+[a-z]+(?:\|[a-z]+)?)`", DEPLOYMENT))
    wanted = {*access_rules(needs(ALL, replica=True)), *access_rules(needs(CLUSTER, replica=False))}
    wanted |= {"+select", "+config|get"}
    assert documented == wanted - set(KEYS)
    for key in KEYS:
        assert key in DEPLOYMENT
