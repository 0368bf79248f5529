"""Connections per user over all machines, for services that share a backplane.

Each worker keeps a hash of its users in the backplane that vanishes ten seconds after its last
renewal, so that a dead worker's claims end by themselves. An index says which workers hold claims on a
user, so that what a claim costs does not depend on the number of workers. All claims of one loop pass
go in one round trip.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from app.backplane.client import FAILURES, AnyBackplane, Argument
from app.backplane.faults import explain, reading_answer
from app.backplane.repair import log_repaired, repair_keys
from app.backplane.scripts import Script
from app.backplane.worker_names import Place, place_of, place_of_row
from app.ports import Slots
from app.supervisor import Supervisor

logger = logging.getLogger(__name__)

LEASE = 10.0
"""Seconds for which a worker's claims stand without renewal."""
RENEWAL_INTERVAL = 3.0
"""Seconds between two renewals of the lease."""
CHECK_INTERVAL = 1.0
"""Seconds between two looks for workers of this machine that have died."""
RETRY_INTERVAL = 1.0
"""Seconds between two tries while the backplane is unavailable."""
_CHUNK = 1000
"""Users in one command when all claims are written anew."""

_WORKERS = b"{rt:users}"
_INDEXED = _WORKERS + b":+workers"
_INDEX = _WORKERS + b":+held"
_LINGER = 60.0
"""Seconds for which the hash of a dead worker is kept after its lease, for the index to lose it."""
_PIECE = 200
"""Users of a dead worker that one call removes from the index."""

_COMMON = """
-- KEYS: workers by the end of their lease (ms), this worker's hash: 'u<user>' and, under '', the
--   sum; the same workers as far as they keep the index (a dead one stays until it is out of it);
--   the index: 'u<user>' and the workers that hold claims on it, with spaces between.
local workers, mine, indexed, index = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local prefix = string.sub(mine, 1, -1 - #ARGV[1])

local function held_by(worker, user)
  local held = redis.pcall('HGET', prefix .. worker, user)
  if type(held) == 'string' and #held < 10 and string.find(held, '^%d+$') then
    return tonumber(held)
  end
  return 0
end

-- The workers that hold claims on a user, and how many in all.
local function holders(user)
  local names, sum = {}, 0
  for name in string.gmatch(redis.call('HGET', index, user) or '', '%S+') do
    local lease = redis.call('ZSCORE', indexed, name)
    local held = lease and tonumber(lease) > now and held_by(name, user) or 0
    if held > 0 then names[#names + 1], sum = name, sum + held end
  end
  return names, sum
end

local function note(user, names)
  if #names == 0 then
    redis.call('HDEL', index, user)
  else
    redis.call('HSET', index, user, table.concat(names, ' '))
  end
end

local function add(names, worker)
  for _, name in ipairs(names) do
    if name == worker then return end
  end
  names[#names + 1] = worker
end

-- Take a worker without a lease out of the index, so many users at once.
local function forget(worker, count)
  local hash = prefix .. worker
  redis.pcall('HDEL', hash, '')  -- should it be alive, it finds another sum than it expects
  local users = redis.pcall('HRANDFIELD', hash, count)
  if type(users) == 'table' and not users.err and #users > 0 then
    for _, user in ipairs(users) do note(user, (holders(user))) end
    redis.call('HDEL', hash, unpack(users))
    if redis.call('EXISTS', hash) == 1 then return end
  end
  redis.call('UNLINK', hash)
  redis.call('ZREM', indexed, worker)
end

local function renew()
  if redis.call('ZCARD', indexed) == 0 then redis.call('UNLINK', index) end
  redis.call('ZADD', workers, now + ARGV[2], ARGV[1])
  redis.call('ZADD', indexed, now + ARGV[2], ARGV[1])
  redis.call('PEXPIRE', mine, ARGV[2] + ARGV[3])
end
"""

CLAIM = Script(
    (
        _COMMON
        + """
-- ARGV: worker, lease (ms), how long its hash is kept after that (ms), most per user, the sum that
--   the worker expects, users of dead workers to remove, then pairs of 'try', 'take' (whatever the
--   cap) or 'give', and a user.
-- Returns false when the hash is not what the worker expects, else a list of 1 (done), 0 (full).
if (redis.call('HGET', mine, '') or '0') ~= ARGV[5] then return false end
redis.call('ZREMRANGEBYSCORE', workers, '-inf', now)
-- A lease never ends later than in one lease: the clock was set back, and it begins anew.
local longest = now + ARGV[2]
for _, key in ipairs({workers, indexed}) do
  for _, worker in ipairs(redis.call('ZRANGEBYSCORE', key, '(' .. longest, '+inf')) do
    redis.call('ZADD', key, longest, worker)
    redis.call('PEXPIRE', prefix .. worker, key == indexed and ARGV[2] + ARGV[3] or ARGV[2])
  end
end
renew()
local dead = redis.call('ZRANGEBYSCORE', indexed, '-inf', now, 'LIMIT', 0, 1)[1]
if dead then forget(dead, ARGV[6]) end

-- A worker of an older version is not in the index: as long as there is one, all are asked.
local all = {}
if redis.call('ZCARD', workers) ~= redis.call('ZCOUNT', indexed, '(' .. now, '+inf') then
  all = redis.call('ZRANGE', workers, 0, -1)
end
local results = {}
for i = 7, #ARGV, 2 do
  local action, user, done = ARGV[i], 'u' .. ARGV[i + 1], 1
  local names, count = holders(user)
  if action == 'try' then
    if #all > 0 then
      count = 0
      for _, worker in ipairs(all) do count = count + held_by(worker, user) end
    end
    if count >= tonumber(ARGV[4]) then done = 0 end
  end
  if done == 1 then
    local step = action == 'give' and -1 or 1
    if redis.call('HINCRBY', mine, user, step) < 1 then
      redis.call('HDEL', mine, user)
      note(user, (holders(user)))
    elseif step == 1 then
      local before = #names
      add(names, ARGV[1])
      if #names > before then note(user, names) end
    end
    redis.call('HINCRBY', mine, '', step)
  end
  results[#results + 1] = done
end
redis.call('PEXPIRE', mine, ARGV[2] + ARGV[3])
return results
"""
    ).encode()
)

UPLOAD = Script(
    (
        _COMMON
        + """
-- ARGV: worker, lease (ms), how long its hash is kept after that (ms), the sum of all its claims
--   with the first part of them and '' with the others, then pairs of a user and its claims.
if ARGV[4] ~= '' then
  local before = redis.call('HKEYS', mine)
  redis.call('UNLINK', mine)
  for _, user in ipairs(before) do note(user, (holders(user))) end
  redis.call('HSET', mine, '', ARGV[4])
end
renew()
for i = 5, #ARGV, 2 do
  local user = 'u' .. ARGV[i]
  local names = holders(user)
  add(names, ARGV[1])
  redis.call('HSET', mine, user, ARGV[i + 1])
  note(user, names)
end
redis.call('PEXPIRE', mine, ARGV[2] + ARGV[3])
return 1
"""
    ).encode()
)

RETIRE = Script(
    (
        _COMMON
        + """
-- ARGV: worker, users to remove at once. Returns whether there are more.
redis.call('ZREM', workers, ARGV[1])
redis.call('ZADD', indexed, 0, ARGV[1])
forget(ARGV[1], ARGV[2])
return redis.call('EXISTS', mine)
"""
    ).encode()
)
"""Ends the lease of a worker that has gone; what is left of it counts no more, and is removed by others."""

_Answer = asyncio.Future[bool]

_Step = tuple[Literal["try", "take", "give"], str, _Answer | None]


class UserClaims:
    """Claims of this worker, counted on its own machine and over all machines.

    The machine's count decides first. While the backplane is unavailable it decides alone, and
    the backplane is updated afterwards.

    Args:
        most: connections per user.
    """

    def __init__(self, backplane: AnyBackplane, slots: Slots, most: int) -> None:
        self._backplane = backplane
        self._slots = slots
        self._most = most
        self._mine = _WORKERS + b":" + backplane.worker_name.encode()
        """Key of the hash of this worker."""
        self._held: Counter[str] = Counter()
        """Claims by user, those on their way to the backplane included."""
        self._reported = 0
        """The sum that the backplane has of this worker."""
        self._steps: list[_Step] = []
        """What the backplane is to be sent next, in this order."""
        self._wake = asyncio.Event()
        """Set when there is any."""
        self._away = False
        """The backplane is unavailable: the machine decides alone."""
        self._stale = False
        """The backplane has something else than `_held` and `_steps` say."""
        self._task: asyncio.Task[None] | None = None
        self._renewed = 0.0
        """When the lease was last renewed (seconds of the loop)."""
        self._rows: set[Place] = set()
        """Workers of this machine when claims of dead ones were last looked for."""

    def start(self, supervisor: Supervisor) -> None:
        """Begin to send claims and to renew the lease; the supervisor begins again what fails."""
        self._task = supervisor.start("claims", self._run)

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
            # What is left when nothing shares the server any more is removed with the last one.
            while await self._retire(self._backplane.worker_name.encode()):
                pass

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
        machine, own = place_of(self._backplane.worker_name.encode())
        if self._away or not machine or self._living() == self._rows:
            return
        try:
            (names,) = await self._backplane.ask([(b"ZRANGE", _WORKERS, 0, -1)])
            # Read after the names: a worker has its row before it has a name here.
            rows = self._living()
            if own not in rows:
                return  # the table is not the one that this worker is named after
            with reading_answer():
                here = [name for name in names if name.startswith(machine + b"-")]
                dead = [name for name in here if place_of(name)[1] not in rows]
            for name in dead:
                shown = name.decode(errors="replace")
                logger.info("Released the user claims of the dead worker %s", shown)
                await self._retire(name)
        except FAILURES:
            return
        self._rows = rows

    def _living(self) -> set[Place]:
        return set(map(place_of_row, self._slots.rows()))

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
            self._reported += sum(
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
        arguments: list[Argument] = [*self._begin(), self._most, self._reported, _PIECE]
        for action, user, _ in steps:
            arguments += (action, user)
        reply: Any = await self._backplane.run(CLAIM, arguments)
        with reading_answer():
            if reply is not None and (
                len(reply) != len(steps) or any(done not in (0, 1) for done in reply)
            ):
                raise ValueError("no results of claims")
        results: list[int] | None = reply
        return results

    def _begin(self) -> list[Argument]:
        """How the arguments of CLAIM and UPLOAD begin."""
        keys = (4, _WORKERS, self._mine, _INDEXED, _INDEX)
        times = (int(LEASE * 1000), int(_LINGER * 1000))
        return [*keys, self._backplane.worker_name, *times]

    async def _retire(self, worker: bytes) -> bool:
        """End the lease of a worker, and remove some of its claims; returns whether there are more."""
        keys = (4, _WORKERS, _WORKERS + b":" + worker, _INDEXED, _INDEX)
        return bool(await self._backplane.run(RETIRE, [*keys, worker, _PIECE]))

    async def _repair(self) -> None:
        """Make the keys usable again if another program has written to them."""
        keys = {_WORKERS: b"zset", self._mine: b"hash", _INDEXED: b"zset", _INDEX: b"hash"}
        log_repaired([await self._backplane.run(*repair_keys(keys))])

    async def _upload(self) -> None:
        held = dict(self._held)
        total = sum(held.values())
        users = list(held)
        for start in range(0, max(1, len(users)), _CHUNK):
            chunk = users[start : start + _CHUNK]
            pairs = [word for user in chunk for word in (user, held[user])]
            first: Argument = b"" if start else total
            await self._backplane.run(UPLOAD, [*self._begin(), first, *pairs])
        self._reported = total
