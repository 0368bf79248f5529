"""Which users are subscribed to which types, over all workers that share the backplane.

Each worker says what its own users are subscribed to, as it changes, and renews a lease. What a worker
has said counts until it says something else, or until its lease has ended and it was removed. The
users of each type are kept in order, so that reading a page costs as much as the page, and no worker
is asked.

One worker at a time has the *turn*: it removes workers whose leases have ended, and announces
changes. A user that was announced and is gone stays announced for the grace of `show`. What is
announced is noted after it was published: after a crash in between it is announced twice.

All of it vanishes two hours after the last worker has renewed it: keys end by the server's clock, which
may be set by an hour.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redis.exceptions import RedisError

from app.backplane.client import FAILURES, AnyBackplane, Argument, Command
from app.backplane.faults import reading_answer, unavailable
from app.backplane.repair import is_damage, log_repaired, repair_keys
from app.backplane.scripts import Script

LEASE = 6.0
"""Seconds for which what a worker has said counts without renewal."""
PASSING = 2.0
"""Seconds for which what a worker has said counts when it has ended: meanwhile those that its
connections have passed to say it, so that no user is missing from a list."""
TURN = 3.0
"""Seconds after which another worker may take the turn from one that is silent."""
GRACE = 5.0
"""Seconds that a user may be away before it has left."""
LEAST_PAUSE = 1.0
"""Seconds between two announcements."""
KEPT = 7500.0
"""Seconds for which everything is kept without renewal; long enough to outlive a step of the clock."""
MOST_USERS = 100_000
"""Users that are kept at most: some 60 MB with ordinary names."""
PIECE = 200
"""Users that one call changes at most: about a millisecond of the server."""
ROWS = 500
"""Changes that one call reads."""

_PREFIX = b"{rt:attendance}:"
_WORKERS, _USERS, _ANNOUNCED = _PREFIX + b"workers", _PREFIX + b"users", _PREFIX + b"announced"
_CAME, _GONE, _STATE = _PREFIX + b"came", _PREFIX + b"gone", _PREFIX + b"state"
_KEYS = {
    _WORKERS: b"zset",
    _USERS: b"hash",
    _ANNOUNCED: b"hash",
    _CAME: b"zset",
    _GONE: b"zset",
    _STATE: b"hash",
}
_KIND = {b"came": True, b"gone": False}
_MOST_DIGITS = 9
"""Of a number of connections: what has more comes from another program."""

logger = logging.getLogger(__name__)

_COMMON = """
-- KEYS: workers by the end of their lease (us); users: 'worker type:connections,...;worker ...';
--   announced users: 'type,...'; users that may have come, by time (us); users that may have gone,
--   by the time from which on they have; the turn. All names begin like the first one. Beside them: 'w:'
--   and a worker, its own users: 'type:connections,...'; 'n:' and a type, its users in order.
local workers, users, announced, came, gone, state = unpack(KEYS)
local prefix = string.sub(workers, 1, -1 - #'workers')
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

local function hash_of(worker) return prefix .. 'w:' .. worker end

local function split(text)
  local names = {}
  for name in string.gmatch(text or '', '[^,]+') do names[name] = true end
  return names
end

-- The types that any worker names, and what the other workers than this one say.
local function read(entry, without)
  local types, parts = {}, {}
  for worker, text in string.gmatch(entry, '([^; ]+) ([^;]+)') do
    for name in string.gmatch(text, '([^:,]+):%d+') do types[name] = true end
    if worker ~= without then parts[#parts + 1] = worker .. ' ' .. text end
  end
  return types, parts
end

-- Let a worker say something of a user. Returns whether there was room.
local function set(worker, user, text, grace, watched, most)
  local old = redis.call('HGET', users, user)
  if not old and text ~= '' and redis.call('HLEN', users) >= most then return false end
  local before, parts = read(old or '', worker)
  if text == '' then
    redis.call('HDEL', hash_of(worker), user)
  else
    parts[#parts + 1] = worker .. ' ' .. text
    redis.call('HSET', hash_of(worker), user, text)
  end
  local new = table.concat(parts, ';')
  if new == '' then redis.call('HDEL', users, user) else redis.call('HSET', users, user, new) end
  local after = read(new)
  for name in pairs(before) do
    if not after[name] then redis.call('ZREM', prefix .. 'n:' .. name, user) end
  end
  for name in pairs(after) do redis.call('ZADD', prefix .. 'n:' .. name, 0, user) end
  if not watched then return true end
  local known = split(redis.call('HGET', announced, user))
  local has_come, has_gone = false, false
  for name in pairs(after) do has_come = has_come or (watched[name] and not known[name]) end
  for name in pairs(known) do has_gone = has_gone or not after[name] end
  if has_come then redis.call('ZADD', came, now, user) end
  if has_gone then redis.call('ZADD', gone, now + grace, user) end
  return true
end
"""

SHOW = Script(
    (
        _COMMON
        + """
-- ARGV: worker, its lease (us), the grace (us), announced types 'type,...' or '' for none, all types
--   that are kept where everything is to be renewed for ARGV[6] ms, else '', that time, most users,
--   then pairs of a user and 'type:connections,...', '' for one that has none any more.
-- Returns how many users of this worker are kept, and those for which there was no room.
local worker = ARGV[1]
local watched = ARGV[4] ~= '' and split(ARGV[4]) or nil
redis.call('ZADD', workers, now + ARGV[2], worker)
local answer = {0}
for i = 8, #ARGV, 2 do
  if not set(worker, ARGV[i], ARGV[i + 1], tonumber(ARGV[3]), watched, tonumber(ARGV[7])) then
    answer[#answer + 1] = ARGV[i]
  end
end
if ARGV[5] ~= '' then
  for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ARGV[6]) end
  redis.call('PEXPIRE', hash_of(worker), ARGV[6])
  for name in pairs(split(ARGV[5])) do redis.call('PEXPIRE', prefix .. 'n:' .. name, ARGV[6]) end
end
answer[1] = redis.call('HLEN', hash_of(worker))
return answer
"""
    ).encode()
)

TEND = Script(
    (
        _COMMON
        + """
-- ARGV: worker, for how long it has the turn (us), the grace (us), announced types or '', the pause
--   between announcements (us), changes to read at most, those to leave out at the beginning, users of
--   gone workers to remove.
-- Returns false when another worker has the turn; else whether there are more gone workers, and of
-- each change 'came' or 'gone', the user, its time, the user's entry, what is announced of it.
local worker, turn = ARGV[1], tonumber(ARGV[2])
local watched = ARGV[4] ~= '' and split(ARGV[4]) or nil
local holder, ends, last = unpack(redis.call('HMGET', state, 'turn', 'ends', 'last'))
ends, last = tonumber(ends or '') or 0, tonumber(last or '') or 0
if holder and holder ~= worker and ends > now and ends <= now + turn then
  local lease = redis.call('ZSCORE', workers, holder)
  if lease and tonumber(lease) > now then return false end
end
redis.call('HSET', state, 'turn', worker, 'ends', string.format('%d', now + turn))

local dead = redis.call('ZRANGEBYSCORE', workers, '-inf', now, 'LIMIT', 0, 1)[1]
if dead then
  -- Another program may have written there.
  local kind = redis.call('TYPE', hash_of(dead)).ok
  if kind ~= 'hash' then redis.call('DEL', hash_of(dead)) end
  local names = redis.call('HRANDFIELD', hash_of(dead), ARGV[8])
  for _, user in ipairs(names) do set(dead, user, '', tonumber(ARGV[3]), watched, 0) end
  if redis.call('EXISTS', hash_of(dead)) == 0 then redis.call('ZREM', workers, dead) end
end
local answer = {dead and 1 or 0}
if not watched or (now < last + ARGV[5] and now >= last) then return answer end

local function add(kind, rows)
  for i = 1, #rows, 2 do
    local user = rows[i]
    answer[#answer + 1] = kind
    answer[#answer + 1] = user
    answer[#answer + 1] = rows[i + 1]
    answer[#answer + 1] = redis.call('HGET', users, user) or ''
    answer[#answer + 1] = redis.call('HGET', announced, user) or ''
  end
end
for kind, key in pairs({came = came, gone = gone}) do
  add(kind, redis.call('ZRANGEBYSCORE', key, '-inf', now, 'WITHSCORES', 'LIMIT', ARGV[7], ARGV[6]))
end
return answer
"""
    ).encode()
)

CONFIRM = Script(
    (
        _COMMON
        + """
-- ARGV: '1' when something was announced, then of each change 'came' or 'gone', the user, its time,
--   what is announced of it from now on.
if ARGV[1] == '1' then redis.call('HSET', state, 'last', string.format('%d', now)) end
for i = 2, #ARGV, 4 do
  local key, user = ARGV[i] == 'came' and came or gone, ARGV[i + 1]
  if ARGV[i + 3] == '' then
    redis.call('HDEL', announced, user)
  else
    redis.call('HSET', announced, user, ARGV[i + 3])
  end
  -- Where it has changed meanwhile it is looked at again.
  local at = redis.call('ZSCORE', key, user)
  if at and tonumber(at) == tonumber(ARGV[i + 2]) then redis.call('ZREM', key, user) end
end
"""
    ).encode()
)

END = Script(
    b"""
-- KEYS: workers by the end of their lease (us). ARGV: for how long they count still (us), then workers.
local time = redis.call('TIME')
local ends = string.format('%d', time[1] * 1000000 + time[2] + ARGV[1])
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], 'XX', 'LT', ends, ARGV[i]) end
"""
)

PAGE = Script(
    b"""
-- KEYS: the users of a type, in order; the hash of all users. ARGV: the user before, or '', and
--   how many.
-- Returns how many users there are, then each with its entry.
local from = ARGV[1] == '' and '-' or '(' .. ARGV[1]
local names = redis.call('ZRANGEBYLEX', KEYS[1], from, '+', 'LIMIT', 0, ARGV[2])
local answer = {redis.call('ZCARD', KEYS[1])}
for _, user in ipairs(names) do
  answer[#answer + 1] = user
  answer[#answer + 1] = redis.call('HGET', KEYS[2], user) or ''
end
return answer
"""
)


@dataclass(frozen=True, slots=True)
class Change:
    """A user that may have come or gone."""

    is_new: bool
    user: str
    at: bytes
    """When, as the server says it; names the change."""
    types: frozenset[str]
    """What it is subscribed to now."""
    announced: frozenset[str]


@dataclass(frozen=True, slots=True)
class Turn:
    """What the worker that has the turn may have to do."""

    has_more: bool
    """There may be more of workers that are gone: call again."""
    changes: list[Change]


class AttendanceStore:
    """What one worker says, reads and announces.

    Every method raises one of `FAILURES` when the backplane does not answer, except `page`.

    Args:
        backplane: connected.
        kept: the types whose users are kept.
        announced: those of them whose users are announced.
    """

    def __init__(
        self, backplane: AnyBackplane, kept: Iterable[str], announced: Iterable[str] = ()
    ) -> None:
        self._backplane = backplane
        self._kept = ",".join(sorted(kept))
        self._announced = ",".join(sorted(announced))
        self._worker = backplane.worker_name

    async def show(self, texts: Sequence[tuple[str, str]], *, renew: bool) -> tuple[int, list[str]]:
        """Say what users of this worker are subscribed to, and renew its lease.

        Args:
            texts: at most `PIECE` users, each with `type:connections,...`, or nothing.
            renew: keep everything for another `KEPT`.

        Returns:
            How many users of this worker are kept, and those for which there is no room.
        """
        reply: Any = await self._run(
            SHOW,
            self._worker,
            _us(LEASE),
            _us(GRACE),
            self._announced,
            self._kept if renew else "",
            round(KEPT * 1000),
            MOST_USERS,
            *(word for pair in texts for word in pair),
        )
        with reading_answer():
            return int(reply[0]), [user.decode() for user in reply[1:]]

    async def shown(self) -> list[str]:
        """The users that are kept for this worker."""
        (reply,) = await self._backplane.ask([(b"HKEYS", _hash_of(self._worker))])
        with reading_answer():
            return [user.decode(errors="replace") for user in reply]

    async def take_turn(self, skip: int = 0) -> Turn | None:
        """Look after what all workers share; None when another one does.

        Args:
            skip: changes of each kind that were read already, and not confirmed.
        """
        reply: Any = await self._run(
            TEND,
            self._worker,
            _us(TURN),
            _us(GRACE),
            self._announced,
            _us(LEAST_PAUSE),
            ROWS,
            skip,
            PIECE,
        )
        if reply is None:
            return None
        with reading_answer():
            rows = [reply[start : start + 5] for start in range(1, len(reply), 5)]
            foreign = [row[:2] for row in rows if _name(row[1]) is None]
            changes = [_change(*row) for row in rows if _name(row[1]) is not None]
            turn = Turn(bool(reply[0]), changes)
        if foreign:
            await self._remove_foreign(foreign)
        return turn

    async def _remove_foreign(self, changes: Sequence[tuple[bytes, bytes]]) -> None:
        """Remove changes of users that only another program can have written.

        Args:
            changes: 'came' or 'gone', and the user.
        """
        users = {user for _, user in changes}
        logger.error(
            "Another program has written to the list of users in the backplane: %d users without a"
            " valid name are removed",
            len(users),
        )
        commands: list[Command] = [(b"HDEL", key, *users) for key in (_USERS, _ANNOUNCED)]
        commands += [(b"ZREM", _CAME if _KIND[kind] else _GONE, user) for kind, user in changes]
        await self._backplane.ask(commands)

    async def confirm(
        self, changes: Sequence[tuple[Change, frozenset[str]]], *, was_published: bool
    ) -> None:
        """Note what is announced of users from now on.

        Args:
            changes: at most `PIECE`, each with all types that are announced of its user.
            was_published: something was published: the next announcement is a second later.
        """
        words: list[Argument] = []
        for change, types in changes:
            kind = "came" if change.is_new else "gone"
            words += (kind, change.user, change.at, ",".join(sorted(types)))
        await self._run(CONFIRM, "1" if was_published else "", *words)

    async def end(self, workers: Sequence[bytes]) -> None:
        """Let the leases of workers that are gone end in `PASSING` seconds."""
        await self._backplane.run(END, (1, _WORKERS, _us(PASSING), *workers))

    async def end_own(self) -> None:
        """Let the lease of this worker end in `PASSING` seconds."""
        await self.end([self._worker.encode()])

    async def workers(self) -> list[bytes]:
        """The workers that have said something."""
        (names,) = await self._backplane.ask([(b"ZRANGE", _WORKERS, 0, -1)])
        with reading_answer():
            if not all(isinstance(name, bytes) for name in names):
                raise ValueError("no names of workers")
            return list(names)

    async def page(self, type: str, after: str, limit: int) -> tuple[int, dict[str, int]]:
        """Users that are subscribed to a type, in the order of their names in UTF-8.

        Args:
            type: one of those that are kept.
            after: the last user of the page before, or nothing.
            limit: most users.

        Returns:
            How many there are in all, and the connections of those on the page.

        Raises:
            BackplaneUnavailable: it cannot be read.
        """
        try:
            reply: Any = await self._backplane.run(
                PAGE, (2, _PREFIX + b"n:" + type.encode(), _USERS, after.encode(), limit)
            )
            with reading_answer():
                found = zip(map(_name, reply[1::2]), reply[2::2], strict=True)
                counts = {
                    user: _counts(entry).get(type, 0) for user, entry in found if user is not None
                }
                return int(reply[0]), {user: count for user, count in counts.items() if count}
        except FAILURES as error:
            raise unavailable(error, "The users are unavailable") from error

    async def _run(self, script: Script, *arguments: Argument) -> Any:
        try:
            return await self._backplane.run(script, (len(_KEYS), *_KEYS, *arguments))
        except RedisError as error:
            if is_damage(error):
                keys = {**_KEYS, _hash_of(self._worker): b"hash"}
                keys |= {_PREFIX + b"n:" + name.encode(): b"zset" for name in self._kept.split(",")}
                log_repaired([await self._backplane.run(*repair_keys(keys))])
            raise


def _us(seconds: float) -> int:
    return round(seconds * 1_000_000)


def _hash_of(worker: str) -> bytes:
    return _PREFIX + b"w:" + worker.encode()


def _name(user: bytes) -> str | None:
    """The name of a user; None for what no worker has written."""
    try:
        return user.decode()
    except UnicodeDecodeError:
        return None


def _change(kind: bytes, user: bytes, at: bytes, entry: bytes, announced: bytes) -> Change:
    known = frozenset(announced.decode(errors="replace").split(",")) - {""}
    return Change(_KIND[kind], user.decode(), at, frozenset(_counts(entry)), known)


def _counts(entry: bytes) -> Mapping[str, int]:
    """Connections by type in the entry of a user."""
    counts: dict[str, int] = {}
    for part in entry.decode(errors="replace").split(";"):
        for pair in part.partition(" ")[2].split(","):
            type, _, count = pair.partition(":")
            if count.isdecimal() and len(count) <= _MOST_DIGITS:
                counts[type] = counts.get(type, 0) + int(count)
    return counts
