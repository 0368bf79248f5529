"""Which processes of the tests count their lines."""

from __future__ import annotations

import os

import pytest

from tests.support.tracing import traced, untraced

NAME = "COVERAGE_PROCESS_CONFIG"


def test_what_is_shared_is_traced_whatever_test_starts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, "config")
    with untraced():
        assert NAME not in os.environ
        with traced():
            assert os.environ[NAME] == "config"
        assert NAME not in os.environ
    assert os.environ[NAME] == "config"
    with traced():
        assert os.environ[NAME] == "config"
    assert os.environ[NAME] == "config"


def test_without_coverage_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(NAME, raising=False)
    with untraced(), traced():
        assert NAME not in os.environ
    assert NAME not in os.environ
