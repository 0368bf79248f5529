"""Malformed input over real sockets: spoilt recordings of both protocols, and spoilt HTTP.

Each run has a new seed unless TORTURE_SEED says one; a failure names the inputs that it saw last,
and `tests.torture.sender` sends one of them again.
"""

from __future__ import annotations

import asyncio
import json
import pickle
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.support import REPO
from tests.support.mutations import seed_of_day
from tests.support.service import Service
from tests.torture import recordings, watch
from tests.torture.sender import Job
from tests.torture.watch import FIRST, LONG, scaled

pytestmark = pytest.mark.timeout(3600 if LONG else 1200)

CONNECTIONS = {"sockets": scaled(2_000, 30_000), "http": scaled(2_000, 60_000)}
"""Of each round; a connection over a WebSocket brings some 18 inputs, one of HTTP about 3."""
BATCH = 5_000
MEMORY_SLACK = 40 * 2**20
"""Bytes by which a worker may grow after the first batch, when its caches are filled."""


async def send(job: Path, seed: int, first: int, count: int) -> dict[str, object]:
    """Send inputs from a process of its own, and return what became of them."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.torture.sender", str(job), str(seed), str(first), str(count)),
        cwd=REPO,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    outcome: dict[str, object] = json.loads(out)
    return outcome


@pytest.mark.parametrize(
    ("kind", "tokens"),
    [("sockets", False), ("sockets", True), ("http", False)],
    ids=["sockets", "sockets with tokens", "http"],
)
async def test_malformed_input_affects_no_other_client(
    kind: str, tokens: bool, tmp_path: Path
) -> None:
    settings = {"AUTH_SECRET": recordings.SECRET} if tokens else {}
    seed = seed_of_day()
    print(f"TORTURE_SEED={seed}")
    async with Service(HANDLERS="tests.torture.handlers", **settings) as service:  # type: ignore[arg-type]
        recorded = await recordings.record(service)
        requests = recordings.http_requests(service.port)
        job = tmp_path / "job"
        job.write_bytes(pickle.dumps(Job(kind, service.port, recorded, requests)))
        inputs, answers = 0, Counter[str]()
        async with watch.witnesses(service) as seen:
            await send(job, seed, 0, 500)  # fills caches
            before = await watch.at_rest(service)
            for first in range(FIRST, CONNECTIONS[kind], BATCH):
                count = min(BATCH, CONNECTIONS[kind] - first)
                outcome = await send(job, seed, first, count)
                what = f"TORTURE_SEED={seed}, {kind} {first} to {first + count}"
                assert not outcome["faults"], (what, outcome["faults"])
                assert frozenset(service.worker_pids()) == before.pids, what
                assert not watch.errors_in(service.log), what
                inputs += outcome["inputs"]  # type: ignore[operator]
                answers += Counter(outcome["answers"])  # type: ignore[arg-type, call-overload]
                # Where a run that ends here goes on: TORTURE_FIRST.
                print(
                    f"{kind}: {first + count} of {CONNECTIONS[kind]}, {inputs} inputs", flush=True
                )
                if first == FIRST:
                    grown = await asyncio.to_thread(watch.memory, service)
            await watch.back_at_rest(service, before)
            seen.check()
            for pid, size in (await asyncio.to_thread(watch.memory, service)).items():
                assert size < grown[pid] + MEMORY_SLACK, f"TORTURE_SEED={seed}: {grown} to {size}"
        print(f"{inputs} inputs: {dict(answers)}; {seen.ticks} messages to each witness")
        # It is not only refused: the inner parts are reached as well.
        assert answers["101" if kind == "sockets" else "400"] > sum(answers.values()) * 0.1
