"""Connections per user over all machines, for services that share a backplane.

Each worker keeps a hash of its users in the backplane that vanishes ten seconds after its last
renewal, so that a dead worker's claims end by themselves. All claims of one loop pass go in one
round trip.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from redis.exceptions import RedisError

from app.backplane.client import FAILURES, Argument, Backplane, Command
from app.backplane.faults import explain
from app.backplane.repair import log_repaired, repair_keys
from app.backplane.scripts import Script
from app.ports import Slots
from app.supervisor import Supervisor

logger = logging.getLogger(__name__)

LEASE = 10.0
"""Seconds for which a worker's claims stand without renewal."""
RENEWAL_INTERVAL = 3.0
CHECK_INTERVAL = 1.0
"""Seconds between two looks for workers of this machine that have died."""
RETRY_INTERVAL = 1.0
_NAME_PARTS = 4
"""Names of workers: machine, row, generation, and a number drawn at random."""
_CHUNK = 1000  # users per command when all claims are written anew

_WORKERS = b"{rt:users}"

CLAIM = Script(
    b"""
-- KEYS: workers by the end of their lease (ms), this worker's hash: 'u<user>' and, under '', the
--   sum. ARGV: worker, lease (ms), most per user, the sum that the worker expects, then pairs of
--   'try', 'take' (whatever the cap) or 'give', and a user.
-- Returns false when the hash is not what the worker expects, else a list of 1 (done), 0 (full).
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local workers, mine = KEYS[1], KEYS[2]
if (redis.call('HGET', mine, '') or '0') ~= ARGV[4] then return false end
redis.call('ZREMRANGEBYSCORE', workers, '-inf', now)
-- A lease never ends later than in one lease: the clock was set back, and it begins anew.
local longest = now + ARGV[2]
local prefix = string.sub(mine, 1, -1 - #ARGV[1])
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', workers, '(' .. longest, '+inf')) do
  redis.call('ZADD', workers, longest, worker)
  redis.call('PEXPIRE', prefix .. worker, ARGV[2])
end
redis.call('ZADD', workers, now + ARGV[2], ARGV[1])
local all = redis.call('ZRANGE', workers, 0, -1)
local results = {}
for i = 5, #ARGV, 2 do
  local action, user, done = ARGV[i], 'u' .. ARGV[i + 1], 1
  if action == 'try' then
    local count = 0
    for _, worker in ipairs(all) do
      local held = redis.pcall('HGET', prefix .. worker, user)
      if type(held) == 'string' and #held < 10 and string.find(held, '^%d+$') then
        count = count + tonumber(held)
      end
    end
    if count >= tonumber(ARGV[3]) then done = 0 end
  end
  if done == 1 then
    local step = action == 'give' and -1 or 1
    if redis.call('HINCRBY', mine, user, step) < 1 then redis.call('HDEL', mine, user) end
    redis.call('HINCRBY', mine, '', step)
  end
  results[#results + 1] = done
end
redis.call('PEXPIRE', mine, ARGV[2])
return results
"""
)

_Answer = asyncio.Future[bool]
_Step = tuple[Literal["try", "take", "give"], str, _Answer | None]


class UserClaims:
    """Claims of this worker, counted on its own machine and over all machines.

    The machine's count decides first. While the backplane is unavailable it decides alone, and
    the backplane is updated afterwards.

    Args:
        most: connections per user.
    """

    def __init__(self, backplane: Backplane, slots: Slots, most: int) -> None:
        self._backplane = backplane
        self._slots = slots
        self._most = most
        self._mine = _WORKERS + b":" + backplane.worker_id.encode()
        self._held: Counter[str] = Counter()
        self._told = 0  # the sum that the backplane has of this worker
        self._steps: list[_Step] = []
        self._wake = asyncio.Event()
        self._away = False
        self._stale = False  # the backplane has something else than `_held` and `_steps` say
        self._task: asyncio.Task[None] | None = None
        self._renewed = 0.0
        self._rows: set[tuple[int, int]] = set()
        """Workers of this machine when claims of dead ones were last looked for."""

    def start(self, supervisor: Supervisor | None = None) -> None:
        """Begin to send claims and to renew the lease; the supervisor begins again what fails."""
        self._task = (supervisor or Supervisor()).start("claims", self._run)

    async def close(self) -> None:
        """Stop, and give the claims back on the backplane (not in the slots)."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        for _, _, answer in self._steps:
            if answer is not None:
                answer.cancel()
        with contextlib.suppress(*FAILURES):
            worker = self._backplane.worker_id
            await self._backplane.ask([(b"DEL", self._mine), (b"ZREM", _WORKERS, worker)])

    async def claim(self, user: str) -> bool:
        """Count one connection of `user`; False when that user is at the cap somewhere."""
        if not self._slots.claim_user(user):
            return False
        if self._away:
            self._held[user] += 1
            return True
        answer: _Answer = asyncio.get_running_loop().create_future()
        self._add("try", user, answer)
        try:
            allowed = await answer
        except asyncio.CancelledError:
            self._slots.release_user(user)
            if not answer.cancelled() and answer.result():
                self._give(user)
            raise
        if not allowed:
            self._slots.release_user(user)
        return allowed

    def adopt(self, user: str) -> None:
        """Count a connection that another worker hands over, whatever the cap; not in the slots."""
        self._held[user] += 1
        self._add("take", user)

    def hand_over(self, user: str) -> None:
        """Release one claim on the backplane only: the adopting worker holds it in the slots."""
        self._give(user)

    def release(self, user: str) -> None:
        """Give one claim on `user` back."""
        self._slots.release_user(user)
        self._give(user)

    def _give(self, user: str) -> None:
        self._held[user] -= 1
        if self._held[user] < 1:
            del self._held[user]
        self._add("give", user)

    def _add(
        self, action: Literal["try", "take", "give"], user: str, answer: _Answer | None = None
    ) -> None:
        if self._away and action != "try":
            return  # all of `_held` is sent when the backplane is back
        self._steps.append((action, user, answer))
        self._wake.set()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if self._away:
                await asyncio.sleep(RETRY_INTERVAL)
            elif not self._stale:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(CHECK_INTERVAL, RENEWAL_INTERVAL)):
                        await self._wake.wait()
            is_due = loop.time() - self._renewed >= RENEWAL_INTERVAL
            if self._wake.is_set() or self._away or self._stale or is_due:
                self._wake.clear()
                await self._exchange()
                self._renewed = loop.time()
            await self._free_dead()

    async def _free_dead(self) -> None:
        """Release the claims of killed workers of this machine, whose rows are gone.

        Otherwise their leases would block their users for up to `LEASE` seconds.
        """
        parts = self._backplane.worker_id.split("-")
        if self._away or len(parts) != _NAME_PARTS or self._living() == self._rows:
            return
        try:
            (names,) = await self._backplane.ask([(b"ZRANGE", _WORKERS, 0, -1)])
            # Read after the names: a worker has its row before it has a name here.
            rows = self._living()
            if _row(self._backplane.worker_id.encode()) not in rows:
                return  # the table is not the one that this worker is named after
            machine = parts[0].encode() + b"-"
            dead = [name for name in names if name.startswith(machine) and _row(name) not in rows]
            for name in dead:
                logger.info("released the user claims of the dead worker %s", name.decode())
                await self._backplane.ask(
                    [(b"DEL", _WORKERS + b":" + name), (b"ZREM", _WORKERS, name)]
                )
        except FAILURES:
            return
        self._rows = rows

    def _living(self) -> set[tuple[int, int]]:
        return {(row.index, row.generation) for row in self._slots.rows()}

    async def _exchange(self) -> None:
        """Tell the backplane what changed, and renew the lease."""
        steps: list[_Step] = self._steps
        self._steps = []
        try:
            if self._stale:
                steps = [step for step in steps if step[0] == "try"]  # `_held` has the others
                await self._repair()
                await self._upload()
            results = await self._send(steps)
        except FAILURES as error:
            if not self._away:
                logger.warning(
                    "MAX_CONNECTIONS_PER_USER is counted on this machine only: %s",
                    explain(error).words,
                )
            self._away = self._stale = True
            results = [1] * len(steps)
        else:
            if self._away:
                logger.info("MAX_CONNECTIONS_PER_USER is counted over all machines again")
            self._away = False
            self._stale = results is None
            if results is None:
                self._steps = [*steps, *self._steps]
                return
            self._told += sum(
                done * (-1 if action == "give" else 1)
                for (action, _, _), done in zip(steps, results, strict=True)
            )
        for (_, user, answer), done in zip(steps, results, strict=True):
            if answer is None:
                continue
            if done:
                self._held[user] += 1
            if not answer.done():
                answer.set_result(bool(done))
            elif done:
                self._give(user)  # the client has gone meanwhile

    async def _send(self, steps: Sequence[_Step]) -> list[int] | None:
        arguments: list[Argument] = [2, _WORKERS, self._mine, self._backplane.worker_id]
        arguments += [int(LEASE * 1000), self._most, self._told]
        for action, user, _ in steps:
            arguments += (action, user)
        reply: Any = await self._backplane.run(CLAIM, arguments)
        if reply is not None and (
            len(reply) != len(steps) or any(done not in (0, 1) for done in reply)
        ):
            raise RedisError("invalid answer to claims")
        results: list[int] | None = reply
        return results

    async def _repair(self) -> None:
        """Make the keys usable again if another program has written to them."""
        keys = {_WORKERS: b"zset", self._mine: b"hash"}
        log_repaired([await self._backplane.run(*repair_keys(keys))])

    async def _upload(self) -> None:
        held = dict(self._held)
        told = sum(held.values())
        commands: list[Command] = [(b"DEL", self._mine), (b"HSET", self._mine, b"", told)]
        users = list(held)
        for start in range(0, len(users), _CHUNK):
            chunk = users[start : start + _CHUNK]
            pairs = [word for user in chunk for word in (f"u{user}", held[user])]
            commands.append((b"HSET", self._mine, *pairs))
        commands.append((b"PEXPIRE", self._mine, int(LEASE * 1000)))
        await self._backplane.ask(commands)
        self._told = told


def _row(name: bytes) -> tuple[int, int]:
    """Row and generation in the name of a worker; none that is in use for another name."""
    parts = name.split(b"-")
    if len(parts) != _NAME_PARTS or not (parts[1].isdigit() and parts[2].isdigit()):
        return -1, -1
    return int(parts[1]), int(parts[2])
