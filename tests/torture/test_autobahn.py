"""Every case of the Autobahn suite, and some of those of compression, against the service's transport."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.support import REPO
from tests.torture import autobahn
from tests.torture.watch import LONG

pytestmark = pytest.mark.timeout(autobahn.BUILD_SECONDS + autobahn.RUN_SECONDS)

CASES = 301
COMPRESSION_CASES = (
    *("12.1.1", "12.1.5", "12.1.11", "12.2.3", "12.4.4", "12.5.4"),
    *("13.1.1", "13.2.1", "13.3.1", "13.4.1", "13.5.1", "13.6.1", "13.7.1"),
)
"""Of 216: of each group one or more. A case has a thousand messages."""
COMPRESSION_GROUPS = [f"12.{n}.*" for n in range(1, 6)] + [f"13.{n}.*" for n in range(1, 8)]
"""All of them, 18 cases each. The suite takes some minutes of one core for a group, the service seconds."""
GROUP_CASES, GROUP_SECONDS, ALL_SECONDS = 18, 3600, 3 * 3600
"""Cases of a group; seconds that a group, and all together, may take where other things run as well."""
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


@pytest.mark.timeout(ALL_SECONDS if LONG else autobahn.BUILD_SECONDS + autobahn.RUN_SECONDS)
async def test_cases_of_compression_are_ok(echo: str, tmp_path: Path) -> None:
    """In the long form every case, in as many runs of the suite at a time as there are cores."""
    if LONG:
        verdicts = await run_groups(echo, tmp_path)
        assert len(verdicts) == GROUP_CASES * len(COMPRESSION_GROUPS)
    else:
        verdicts = await asyncio.to_thread(autobahn.run, echo, tmp_path, list(COMPRESSION_CASES))
        assert set(verdicts) == set(COMPRESSION_CASES)
    wrong = {
        case: (verdict["behavior"], verdict["behaviorClose"], Path(verdict["report"]).read_text())
        for case, verdict in verdicts.items()
        if not {verdict["behavior"], verdict["behaviorClose"]} <= {"OK"}
    }
    assert not wrong


async def run_groups(url: str, directory: Path) -> dict[str, dict[str, Any]]:
    """Run all cases of compression, and say what came of each group when it is done."""
    cores = asyncio.Semaphore(len(os.sched_getaffinity(0)))
    verdicts: dict[str, dict[str, Any]] = {}

    async def run(number: int, group: str) -> None:
        place = directory / str(number)
        place.mkdir()
        async with cores:
            found = await asyncio.to_thread(
                autobahn.run, url, place, [group], seconds=GROUP_SECONDS
            )
        counts = Counter(verdict["behavior"] for verdict in found.values())
        print(f"{group} {dict(counts)}", flush=True)
        verdicts.update(found)

    await asyncio.to_thread(autobahn.install)
    async with asyncio.TaskGroup() as tasks:
        for number, group in enumerate(COMPRESSION_GROUPS):
            tasks.create_task(run(number, group))
    return verdicts


def test_without_a_python_2_7_it_says_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYTHON27", sys.executable)
    with pytest.raises(autobahn.NoPython, match=r"pyenv install 2\.7\.18"):
        autobahn.python27()
