"""Every case of the Autobahn suite against the service's transport."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support import REPO
from tests.torture import autobahn

pytestmark = pytest.mark.timeout(autobahn.BUILD_SECONDS + autobahn.RUN_SECONDS)

CASES = 301
COMPRESSION_CASES = 216
DECLINED = 0
NOT_JUDGED = {"7.1.6", "7.13.1", "7.13.2"}
"""Cases that the suite calls informational whatever the server does."""


@pytest_asyncio.fixture
async def echo() -> AsyncIterator[str]:
    """URL of a server that echoes, on the service's own transport."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.torture.echo_server", cwd=REPO, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        port = int(await process.stdout.readline())
        yield f"ws://127.0.0.1:{port}"
        assert process.returncode is None, "the server ended"
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def test_every_case_is_ok(echo: str, tmp_path: Path) -> None:
    verdicts = await asyncio.to_thread(
        autobahn.run, echo, tmp_path, ["*"], left_out=autobahn.COMPRESSION
    )
    wrong = {
        case: (verdict["behavior"], verdict["behaviorClose"], Path(verdict["report"]).read_text())
        for case, verdict in verdicts.items()
        if not {verdict["behavior"], verdict["behaviorClose"]} <= {"OK"} and case not in NOT_JUDGED
    }
    assert not wrong
    assert len(verdicts) == CASES
    assert {
        verdicts[case][what] for case in NOT_JUDGED for what in ("behavior", "behaviorClose")
    } == {"INFORMATIONAL"}


@pytest.mark.timeout(autobahn.BUILD_SECONDS + autobahn.COMPRESSION_SECONDS)
async def test_every_case_of_compression_is_ok(echo: str, tmp_path: Path) -> None:
    verdicts = await asyncio.to_thread(
        autobahn.run,
        echo,
        tmp_path,
        list(autobahn.COMPRESSION),
        seconds=autobahn.COMPRESSION_SECONDS,
    )
    wrong = {
        case: (verdict["behavior"], verdict["behaviorClose"], Path(verdict["report"]).read_text())
        for case, verdict in verdicts.items()
        if not {verdict["behavior"], verdict["behaviorClose"]} <= {"OK", "UNIMPLEMENTED"}
    }
    assert not wrong
    assert len(verdicts) == COMPRESSION_CASES
    # The suite offers nothing else in these, and a window of 8 bits is declined.
    declined = {case for case, one in verdicts.items() if one["behavior"] == "UNIMPLEMENTED"}
    assert len(declined) == DECLINED


def test_without_a_python_2_7_it_says_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYTHON27", sys.executable)
    with pytest.raises(autobahn.NoPython, match=r"pyenv install 2\.7\.18"):
        autobahn.python27()
