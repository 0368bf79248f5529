"""Keys of the streams, and the Lua that runs inside Valkey.

Everything that must be atomic happens in these scripts: the epoch is made with its stream, a
retried batch is recognised, and a stream that fell back gets a new epoch by compare-and-set.

Per type `T` the meta hash `{rt:T}:m` holds `p` the epoch, `b` the seq after which the epoch
began, `n` the newest seq, `z` the bytes of the history, `h` the time of its oldest entry as
last seen and `o` the time at which the newer of the two tables of known ids was begun.

All times are the stream's own: the server's clock plus `k`, which takes out its steps (after a
correction, or when another server takes over). A publisher says what time it expects, by a clock
of its own that makes no steps; where the server is far from that, `k` changes. `c` is the stream's
time at the last publish: it never falls.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

CONTROL = "control"
"""The type whose stream carries control messages between workers."""

ONCE_WINDOW = 300.0
"""Seconds for which a chosen id is known (docs/PROTOCOL.md)."""
ONCE_MAX = 100_000
"""Chosen ids that are known per type, at least."""


def stream_key(type: str) -> bytes:
    """The stream of a type."""
    return b"{rt:%b}:s" % type.encode()


def meta_key(type: str) -> bytes:
    """The meta hash of a type."""
    return b"{rt:%b}:m" % type.encode()


def batch_key(type: str, publisher: str) -> bytes:
    """The result of the last batch that `publisher` stored; kept for two hours."""
    return b"{rt:%b}:w:%b" % (type.encode(), publisher.encode())


def once_keys(type: str) -> tuple[bytes, bytes]:
    """Two hashes of known ids, the newer one first."""
    tag = type.encode()
    return b"{rt:%b}:o" % tag, b"{rt:%b}:q" % tag


def probe_key(type: str) -> bytes:
    """What is written to learn whether messages of a type could be stored."""
    return b"{rt:%b}:t" % type.encode()


def new_epoch() -> bytes:
    """A name that no epoch had before: 48 random bits in 8 characters."""
    try:
        return _epochs.pop()
    except IndexError:
        many = secrets.token_urlsafe(6 * 64).encode()
        _epochs.extend(many[start : start + 8] for start in range(8, len(many), 8))
        return many[:8]


_epochs: list[bytes] = []
"""Names to come: each publish needs one, in case its stream is gone."""
os.register_at_fork(after_in_child=_epochs.clear)


@dataclass(frozen=True)
class Script:
    """Lua source and the name by which EVALSHA knows it."""

    source: bytes
    sha: bytes = field(init=False)

    def __post_init__(self) -> None:
        sha = hashlib.sha1(self.source, usedforsecurity=False).hexdigest()
        object.__setattr__(self, "sha", sha.encode())


Call = tuple[Script, Sequence[bytes | str | int]]
"""A script, and what follows its name."""


# What the scripts read may have been written by another program: whatever is not as they write
# it counts as missing.
_COUNT = """
local function count(text)
  if text and #text <= 16 and string.find(text, '^%d+$') then return tonumber(text) end
end
"""

# The epoch changes when there is none, when the stream has vanished under its meta hash, and
# when the caller knows a newer message of this epoch than the stream does (or knows otherwise
# that it is not the stream it was). A caller that knows another epoch changes nothing.
_TIME = """
local STEP, FUTURE = 10000000, 10000000

-- The stream's time now (us), and `k` if it has changed.
local function stream_time(k, c, expected)
  local time, shift, last = redis.call('TIME'), 0, count(c) or 0
  if k and k ~= '0' then
    shift = count(string.match(k, '^%-?(%d+)$')) or 0
    if string.sub(k, 1, 1) == '-' then shift = -shift end
  end
  local now = time[1] * 1000000 + time[2] + shift
  local plain = now
  -- A publisher that is behind what others have reached was stopped: it knows nothing of steps.
  if expected and math.abs(now - expected) > STEP and expected > last - STEP then
    now = expected
  end
  now = math.max(now, last)
  if now ~= plain then return now, string.format('%d', shift + now - plain) end
  return now
end
"""

_EPOCH = (
    _COUNT
    + """
local function last_seq(stream)
  local info = redis.call('XINFO', 'STREAM', stream)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then
      return count(string.match(info[i + 1], '^0%-(%d+)$')) or 0
    end
  end
end

local function locate(stream, meta, candidate, known_epoch, known_seq, force, exists)
  local m = redis.call('HMGET', meta, 'p', 'b', 'n', 'z', 'h', 'o', 'k', 'c')
  local epoch, base, newest = m[1], count(m[2] or '0'), count(m[3] or '0')
  local bytes, head, since = count(m[4]) or 0, count(m[5]) or 0, count(m[6]) or 0
  if not (epoch and base and newest and #epoch <= 64 and string.find(epoch, '^[%w_-]+$')) then
    epoch, base, newest = false, 0, 0
  end
  exists = exists or redis.call('EXISTS', stream) == 1
  local known = epoch == known_epoch
  if known and newest < known_seq and exists and last_seq(stream) >= known_seq then
    newest = last_seq(stream)  -- another program has added to the stream
    redis.call('HSET', meta, 'n', newest)
  end
  if not epoch or (newest > 0 and not exists) or (known and (newest < known_seq or force)) then
    epoch, newest = candidate, 0
    if exists then
      newest = last_seq(stream)
    else
      bytes, head = 0, 0
    end
    base = newest
    redis.call('HSET', meta, 'p', epoch, 'b', base, 'n', newest, 'z', bytes, 'h', head)
  end
  return epoch, base, newest, bytes, head, since, m[7], m[8]
end
"""
)

LOCATE = Script(
    (
        _EPOCH
        + """
-- KEYS: stream, meta. ARGV: candidate epoch, known epoch, known seq, force ('1' or '').
-- Returns the epoch, the seq after which it began, the newest seq, the oldest seq that is held.
local epoch, base, newest =
  locate(KEYS[1], KEYS[2], ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4] == '1')
local oldest = newest + 1
local rows = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)
if rows[1] then oldest = count(string.match(rows[1][1], '%-(%d+)$')) or oldest end
return {epoch, base, newest, oldest}
"""
    ).encode()
)

PAGE = Script(
    b"""
-- KEYS: stream. ARGV: XRANGE or XREVRANGE, the two ends, most entries, most bytes.
-- Returns 1 if there are more entries between the ends, else 0, and then the entries: the first
-- one however long it is, and no others that would make them longer than ARGV[5].
local command, from, to = ARGV[1], ARGV[2], ARGV[3]
local limit, most = tonumber(ARGV[4]), tonumber(ARGV[5])
local page, count, size, step = {0}, 0, 0, 1
while true do
  local rows = redis.call(command, KEYS[1], from, to, 'COUNT', step)
  for _, row in ipairs(rows) do
    local length = 0
    for _, field in ipairs(row[2]) do length = length + #field end
    if count == limit or (count > 0 and size + length > most) then
      page[1] = 1
      return page
    end
    count, size = count + 1, size + length
    page[count + 1] = row
  end
  if #rows < step then return page end
  from = '(' .. rows[#rows][1]
  -- As many as fit if the others are as long as these, and few as long as little is known.
  local fit = math.floor((most - size) * count / math.max(size, 1)) + 1
  step = math.max(1, math.min(fit, 4 * count, limit - count + 1))
end
"""
)
"""A stretch of a stream that is bounded in bytes, read once."""

PUBLISH = Script(
    (
        _EPOCH
        + _TIME
        + """
-- KEYS: stream, meta, batch record, newer and older table of known ids.
-- ARGV: batch number, the time to go by (us) or '' for the server's, candidate epoch, known epoch,
--   known seq, history size, recovery window (us), history bytes, once window (us), most known ids,
--   expected time (us) or '', then of the messages in turn, since those of one call are alike: how many
--   have the same event and age, these two, '1' if their ids are chosen or '', and for each of them the
--   name of the body's field, the body and, if '1', its id.
-- Returns 'epoch first count', or, when ids were known, 'epoch seq,seq:epoch,...', and the
-- stream's time (us) or '' when the batch was stored before.
local stream, meta, record, once, older = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local batch = tonumber(ARGV[1])
local stored = redis.call('GET', record)
if stored then
  local number, result = string.match(stored, '^(%d+) (.*)$')
  number = count(number) or 0
  if number == batch then
    redis.call('PEXPIRE', record, 7500000)  -- a write, for WAIT to wait for
    return {result, ''}
  end
  -- A connection that was given up may deliver its commands late.
  if number > batch then return redis.error_reply('STALE batch') end
end

local length = redis.call('XLEN', stream)
local epoch, base, newest, bytes, head, since, k, c =
  locate(stream, meta, ARGV[3], ARGV[4], tonumber(ARGV[5]), false, length > 0)
local keep, window, most = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local once_window, once_most = tonumber(ARGV[9]), tonumber(ARGV[10])
local OVERHEAD, MAX_SEQ = 32, 9007199254740990
local now, new_k = tonumber(ARGV[2]), nil
if not now then now, new_k = stream_time(k, c, tonumber(ARGV[11])) end
local stamp = string.format('%d', now)

local function known(id)
  local value = redis.call('HGET', once, id) or redis.call('HGET', older, id)
  if value then
    local at, seq, its_epoch = string.match(value, '^(%d+) (%d+) ([%w_-]+)$')
    local age = count(at) and now - count(at)
    if age and count(seq) and age < once_window and age > -FUTURE then
      if its_epoch == epoch then return seq end
      return seq .. ':' .. its_epoch
    end
  end
end

local function turn_tables()
  local age = now - since
  if age < once_window and age > -FUTURE and redis.call('HLEN', once) < once_most then return end
  if redis.call('EXISTS', once) == 1 then
    redis.call('UNLINK', older)
    redis.call('RENAME', once, older)
  end
  since = now
  redis.call('HSET', meta, 'o', stamp)
end

-- A few entries of the head are looked at per batch, so that no publish pays for a long burst;
-- the limit in bytes alone is kept at once.
local function is_old() return head <= now - window or head > now + FUTURE end

local function trim(added)
  if length <= 1 or not (bytes > most or (length > keep and is_old())) then return 0 end
  local from, ask, left, cut, removed = '-', 1, 64 + 2 * added, nil, 0
  repeat
    local rows = redis.call('XRANGE', stream, from, '+', 'COUNT', ask)
    for _, row in ipairs(rows) do
      local f = row[2]
      head = count(f[6]) or 0
      if length <= 1 or not (bytes > most or (length > keep and is_old() and left > 0)) then
        cut = row[1]
        break
      end
      bytes = bytes - #(f[4] or '') - #(f[8] or '') - OVERHEAD
      length, left, removed = length - 1, left - 1, removed + 1
    end
    if not cut and #rows > 0 then
      from = '(' .. rows[#rows][1]
      ask = math.min(ask * 2, 64)
    end
  until cut or #rows == 0
  if not cut or removed == 0 then return 0 end
  redis.call('XTRIM', stream, 'MINID', cut)
  return removed
end

local function keep_meta()
  redis.call('HSET', meta, 'n', newest, 'z', math.max(bytes, 0), 'h', string.format('%d', head),
    'c', stamp)
  if new_k then redis.call('HSET', meta, 'k', new_k) end
end

local call, seqs, repeated, chosen, added = redis.call, {}, false, false, 0
local place, last_size = 12, 0
while place <= #ARGV do
  local alike, event, age = tonumber(ARGV[place]), ARGV[place + 1], tonumber(ARGV[place + 2])
  local width = ARGV[place + 3] == '1' and 3 or 2
  local accepted, fixed = string.format('%d', now - age), #event + OVERHEAD
  place = place + 4
  for i = place, place + (alike - 1) * width, width do
    local id = width == 3 and ARGV[i + 2]
    local seq = id and known(id)
    if seq then
      repeated = true
    else
      -- What was added first makes sure that the others are, each with the number after the last one.
      local add = added == 0 and redis.pcall or call
      local body = ARGV[i + 1]
      local entry = add('XADD', stream, '0-*',
        'p', epoch, 'e', event, 't', accepted, ARGV[i], body)
      if added > 0 then
        newest = newest + 1
      elseif type(entry) == 'string' then
        newest = count(string.sub(entry, 3)) or MAX_SEQ + 1
      else
        -- With its memory full the server still lets go of what is beyond the limits, which may have
        -- been lowered for that, and of ids that are known for too long; the next try may then find room.
        if string.find(entry.err, 'OOM', 1, true) then
          if now - since >= once_window then call('UNLINK', older) end
          turn_tables()
          if trim(64) > 0 then keep_meta() end
        end
        return entry
      end
      if newest > MAX_SEQ then return redis.error_reply('UNUSABLE stream') end
      length, added = length + 1, added + 1
      last_size = fixed + #body
      bytes = bytes + last_size
      if id then
        seq = string.format('%d', newest)
        chosen = true
        turn_tables()
        call('HSET', once, id, stamp .. ' ' .. seq .. ' ' .. epoch)
      end
    end
    seqs[#seqs + 1] = seq or newest
  end
  place = place + alike * width
end
-- Long enough to outlive a step of the clock; the age of each id is looked at in any case.
if chosen then redis.call('PEXPIRE', once, math.ceil(once_window / 500) + 7200000) end

if added > 0 then trim(added) end
if added > 0 and length == 1 then bytes = last_size end
if added > 0 then keep_meta() end

local result
if repeated then
  for n, seq in ipairs(seqs) do
    if type(seq) == 'number' then seqs[n] = string.format('%d', seq) end
  end
  result = epoch .. ' ' .. table.concat(seqs, ',')
else
  result = epoch .. ' ' .. string.format('%d', newest - #seqs + 1) .. ' ' .. #seqs
end
redis.call('SET', record, ARGV[1] .. ' ' .. result, 'PX', 7500000)
return {result, stamp}
"""
    ).encode()
)


REPAIR = Script(
    (
        _COUNT
        + """
-- KEYS: any of one slot, each stream followed by its meta hash.
-- ARGV: for each the type that it should have: 'stream', 'hash', 'string', 'zset'.
-- Repairs keys that another program has written to. A key of another type is renamed;
-- entries of a stream after which it cannot go on are left out.
-- Returns the names of the keys that were changed.
local LAST, END = 9007199254740989, '0-9007199254740990'

local function repair_stream(key, meta)
  local info, seq = redis.call('XINFO', 'STREAM', key), nil
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then
      seq = count(string.match(info[i + 1], '^0%-(%d+)$'))
    end
  end
  if seq and seq <= LAST then return false end
  -- To delete the entries would not do: ids below a deleted one cannot be given any more.
  local copy, from, last = key .. ':repaired', '-', 0
  redis.call('DEL', copy)
  repeat
    local rows = redis.call('XRANGE', key, from, '0-' .. string.format('%d', LAST), 'COUNT', 500)
    for _, row in ipairs(rows) do
      if #row[2] <= 64 then
        redis.call('XADD', copy, row[1], unpack(row[2]))
      else
        redis.call('XADD', copy, row[1], 'x', '')  -- no message either; readers have passed it
      end
      last = count(string.sub(row[1], 3))
      from = '(' .. row[1]
    end
  until #rows == 0
  -- Workers that have read up to the very last number cannot go on in this epoch.
  local ended = #redis.call('XRANGE', key, END, END) > 0
  redis.call('DEL', key)
  if last > 0 then redis.call('RENAME', copy, key) end
  if redis.call('TYPE', meta).ok == 'hash' then
    local newest = count(redis.call('HGET', meta, 'n'))
    if last > 0 and newest and newest <= last and not ended then
      redis.call('HSET', meta, 'n', last)
    else
      redis.call('DEL', meta)
    end
  end
  return true
end

local changed = {}
for i, key in ipairs(KEYS) do
  local found = redis.call('TYPE', key).ok
  if found ~= 'none' and found ~= ARGV[i] then
    redis.call('RENAME', key, key .. ':foreign')
    changed[#changed + 1] = key
  elseif found == 'stream' and repair_stream(key, KEYS[i + 1]) then
    changed[#changed + 1] = key
  end
end
return changed
"""
    ).encode()
)


SHARE_KEY = Script(
    b"""
-- KEYS: the key that workers share. ARGV: 32 random bytes.
-- Returns what is held; what cannot be such a key is replaced.
local held = redis.call('GET', KEYS[1])
if held and #held == 32 then return held end
redis.call('SET', KEYS[1], ARGV[1])
return ARGV[1]
"""
)
