"""Hooks of all tests: no process is left behind, and a failed test shows the log of its service."""

from __future__ import annotations

import gc
import signal
from collections.abc import Generator
from typing import Any

import hypothesis
import pytest

from tests.support import programs
from tests.support.service import Service
from tests.support.tracing import hide, leave_forks_out, untraced
from workers.leader import valkey as private_valkey

# No limit of time for an example: how long one takes says how busy the machine is.
hypothesis.settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("untimed")

# The files that take longest first, waits included, so that none of them is left for the end when files
# run in parallel: one that mostly waits leaves the processors to the others only while there are others.
# Before them those that fork the process of the tests, which costs the more the larger it has become.
_LONG = (
    "test_slots", "test_metrics_files",
    "test_replicas", "test_lies", "test_scripts", "test_page", "test_handoff",
    "test_backplane_reload", "test_sentinels", "test_reload", "test_event_stream",
    "test_backplane_errors", "test_attendance", "test_server_clock", "test_relays", "test_doors",
    "test_gunicorn_worker", "test_recovery", "test_collector", "test_backplane_faults",
    "test_several_machines", "test_second_master", "test_attendance_failover", "test_protocol",
    "test_backplane_url", "test_costs", "test_fairness", "test_heartbeat", "test_command",
    "test_cluster_lies", "test_deaf_worker", "test_wrong_answers", "test_cluster", "test_caps",
    "test_auth", "test_end_to_end", "test_memory", "test_soak", "test_storms", "test_malformed",
    "test_autobahn", "test_replica", "test_session_handoff", "test_run", "test_queue",
    "test_health", "test_removed_files", "test_client", "test_event_source", "test_reader",
    "test_valkey", "test_both_ways_in", "test_caddy", "test_python_client", "test_plain",
    "test_slow_consumers", "test_deflate", "test_publisher", "test_log_level", "test_socketio",
    "test_metrics", "test_alerts",
)  # fmt: skip

# What these tiers start runs at its full speed, but for what is marked `traced` and the service
# that tests share: the others cover its lines. See CONTRIBUTING.md.
_UNCOVERED = frozenset(
    {"architecture", "containers", "deploy", "integration", "monitoring", "page", "torture"}
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files by what they take, and leave the tests of a file together."""
    order = {name: place for place, name in enumerate(_LONG)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))
    for item in items:
        is_traced = item.get_closest_marker("traced") is not None
        repeats = getattr(getattr(item, "obj", None), "is_hypothesis_test", False)
        if (item.path.parent.name in _UNCOVERED or repeats) and not is_traced:
            item.add_marker(pytest.mark.no_cover)
        if item.path.parent.name == "torture":
            item.add_marker(pytest.mark.long)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Take the tests themselves out of the sight of the collector, which else looks at all again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_configure(config: pytest.Config) -> None:
    """Let SIGTERM, as a CI sends it, end the tests as Ctrl-C does: with their services."""
    config.addinivalue_line("markers", "needs(*names): programs that the test starts")
    config.addinivalue_line("markers", "alone: measures, or takes the machine to itself")
    config.addinivalue_line("markers", "long: loads or walks for minutes: runs by make torture")
    config.addinivalue_line("markers", "no_cover: neither it nor its processes count their lines")
    config.addinivalue_line("markers", "traced: an integration test whose processes count theirs")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # What `nohup` and a shell's `&` have ignored would be ignored by all that the tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)


# A coverage that begins while another counts takes its place, and gives it back when it pauses: so
# in a process of tests there must be one, or `no_cover` changes nothing. The environment starts one
# in each process, and pytest-cov two.


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes() -> None:
    """Let the environment start none in the processes of the tests."""
    hide()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """End the one that pytest-cov has started before it knew that this is a process of xdist."""
    plugin = session.config.pluginmanager.get_plugin("_cov")
    if plugin is None or plugin.cov_controller is None:
        return
    leave_forks_out()
    if hasattr(session.config, "workerinput"):
        plugin.cov_controller.cov.stop()
        plugin.cov_controller.cov.save()  # what was imported so far


def pytest_unconfigure() -> None:
    """Leave no service behind, however the tests ended."""
    for running in list(Service.running):
        running.destroy()
    for child in private_valkey._children:  # those that tests have ended by their pids
        child.poll()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail a test whose programs are missing."""
    for mark in item.iter_markers("needs"):
        for name in mark.args:
            programs.find(name)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Let the processes of a test marked `no_cover` run at their full speed."""
    if item.get_closest_marker("no_cover") is None:
        return (yield)
    with untraced():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, Any, Any]:
    """Show the end of the service's log with a failed test."""
    report: Any = yield
    if report.failed:
        for running in Service.running:
            report.sections.append((f"log of the service on {running.port}", running.log[-6000:]))
    return report
