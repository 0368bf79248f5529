"""Keys of the streams, and the Lua that runs inside Valkey.

Everything that must be atomic happens in these scripts: the epoch is made with its stream, a
retried batch is recognised, and a stream that fell back gets a new epoch by compare-and-set.

Per type `T` the meta hash `{rt:T}:m` holds `p` the epoch, `b` the seq after which the epoch
began, `n` the newest seq, `z` the bytes of the history, `h` the time of its oldest entry as
last seen and `o` the time at which the newer of the two tables of known ids was begun.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field

CONTROL = "control"
"""The type whose stream carries what workers say to each other."""

ONCE_WINDOW = 300.0
"""Seconds for which a chosen id is known (PROTOCOL.md)."""
ONCE_MAX = 100_000
"""Chosen ids that are known per type, at least."""


def stream_key(type: str) -> bytes:
    """The stream of a type."""
    return b"{rt:%b}:s" % type.encode()


def meta_key(type: str) -> bytes:
    """The meta hash of a type."""
    return b"{rt:%b}:m" % type.encode()


def batch_key(type: str, publisher: str) -> bytes:
    """The result of the last batch that `publisher` stored; kept for five minutes."""
    return b"{rt:%b}:w:%b" % (type.encode(), publisher.encode())


def once_keys(type: str) -> tuple[bytes, bytes]:
    """Two hashes of known ids, the newer one first."""
    tag = type.encode()
    return b"{rt:%b}:o" % tag, b"{rt:%b}:q" % tag


def new_epoch() -> bytes:
    """A name that no epoch had before: 48 random bits in 8 characters."""
    return secrets.token_urlsafe(6).encode()


@dataclass(frozen=True)
class Script:
    """Lua source and the name by which EVALSHA knows it."""

    source: bytes
    sha: bytes = field(init=False)

    def __post_init__(self) -> None:
        sha = hashlib.sha1(self.source, usedforsecurity=False).hexdigest()
        object.__setattr__(self, "sha", sha.encode())


# The epoch changes when there is none, when the stream has vanished under its meta hash, and
# when the caller knows a newer message of this epoch than the stream does (or knows otherwise
# that it is not the stream it was). A caller that knows another epoch changes nothing.
_EPOCH = """
local function locate(stream, meta, candidate, known_epoch, known_seq, force)
  local m = redis.call('HMGET', meta, 'p', 'b', 'n', 'z', 'h', 'o')
  local epoch, base, newest = m[1], tonumber(m[2] or '0'), tonumber(m[3] or '0')
  local bytes, head, since = tonumber(m[4] or '0'), tonumber(m[5] or '0'), tonumber(m[6] or '0')
  local exists = redis.call('EXISTS', stream) == 1
  local stale = epoch == known_epoch and (newest < known_seq or force)
  if not epoch or (newest > 0 and not exists) or stale then
    epoch, newest = candidate, 0
    if exists then
      local info = redis.call('XINFO', 'STREAM', stream)
      for i = 1, #info, 2 do
        if info[i] == 'last-generated-id' then
          newest = tonumber(string.match(info[i + 1], '%-(%d+)$'))
        end
      end
    else
      bytes, head = 0, 0
    end
    base = newest
    redis.call('HSET', meta, 'p', epoch, 'b', base, 'n', newest, 'z', bytes, 'h', head)
  end
  return epoch, base, newest, bytes, head, since
end
"""

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
if rows[1] then oldest = tonumber(string.match(rows[1][1], '%-(%d+)$')) end
return {epoch, base, newest, oldest}
"""
    ).encode()
)

PUBLISH = Script(
    (
        _EPOCH
        + """
-- KEYS: stream, meta, batch record, newer and older table of known ids.
-- ARGV: batch number, now (us), candidate epoch, known epoch, known seq, history size,
--   recovery window (us), history bytes, once window (us), most known ids,
--   then per message: event, accepted (us), body, chosen id or ''.
-- Returns 'epoch first count', or, when ids were known, 'epoch seq,seq:epoch,...'.
local stream, meta, record, once, older = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local batch, now = tonumber(ARGV[1]), tonumber(ARGV[2])
local stored = redis.call('GET', record)
if stored then
  local number, result = string.match(stored, '^(%d+) (.*)$')
  if tonumber(number) == batch then return result end
  -- A connection that was given up may deliver its commands late.
  if tonumber(number) > batch then return redis.error_reply('STALE batch') end
end

local epoch, base, newest, bytes, head, since =
  locate(stream, meta, ARGV[3], ARGV[4], tonumber(ARGV[5]), false)
local keep, window, most = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local once_window, once_most = tonumber(ARGV[9]), tonumber(ARGV[10])
local OVERHEAD = 32

local function known(id)
  local value = redis.call('HGET', once, id) or redis.call('HGET', older, id)
  if value then
    local at, seq, its_epoch = string.match(value, '^(%d+) (%d+) (.*)$')
    if now - tonumber(at) < once_window then
      if its_epoch == epoch then return seq end
      return seq .. ':' .. its_epoch
    end
  end
end

local function turn_tables()
  if now - since < once_window and redis.call('HLEN', once) < once_most then return end
  if redis.call('EXISTS', once) == 1 then
    redis.call('UNLINK', older)
    redis.call('RENAME', once, older)
  end
  since = now
  redis.call('HSET', meta, 'o', ARGV[2])
end

local seqs, repeated, chosen, added = {}, false, false, 0
for i = 11, #ARGV, 4 do
  local id = ARGV[i + 3]
  local seq = id ~= '' and known(id)
  if seq then
    repeated = true
  else
    local entry = redis.call('XADD', stream, '0-*',
      'p', epoch, 'e', ARGV[i], 't', ARGV[i + 1], 'd', ARGV[i + 2])
    seq = string.sub(entry, 3)
    newest = tonumber(seq)
    added = added + 1
    bytes = bytes + #ARGV[i] + #ARGV[i + 2] + OVERHEAD
    if id ~= '' then
      chosen = true
      turn_tables()
      redis.call('HSET', once, id, ARGV[2] .. ' ' .. seq .. ' ' .. epoch)
    end
  end
  seqs[#seqs + 1] = seq
end
if chosen then redis.call('PEXPIRE', once, math.ceil(once_window / 500)) end

-- A few entries of the head are looked at per batch, so that no publish pays for a long burst;
-- the limit in bytes alone is kept at once.
local length = added > 0 and redis.call('XLEN', stream) or 0
local cutoff = now - window
if length > 1 and (bytes > most or (length > keep and head <= cutoff)) then
  local from, ask, left, cut, removed = '-', 1, 64 + 2 * added, nil, 0
  repeat
    local rows = redis.call('XRANGE', stream, from, '+', 'COUNT', ask)
    for _, row in ipairs(rows) do
      local f = row[2]
      head = tonumber(f[6] or '0') or 0
      if length <= 1 or not (bytes > most or (length > keep and head <= cutoff and left > 0)) then
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
  if cut and removed > 0 then redis.call('XTRIM', stream, 'MINID', cut) end
end
if length == 1 then bytes = #ARGV[#ARGV - 3] + #ARGV[#ARGV - 1] + OVERHEAD end
if added > 0 then
  redis.call('HSET', meta, 'n', newest, 'z', math.max(bytes, 0), 'h', string.format('%d', head))
end

local result
if repeated then
  result = epoch .. ' ' .. table.concat(seqs, ',')
else
  result = epoch .. ' ' .. seqs[1] .. ' ' .. #seqs
end
redis.call('SET', record, ARGV[1] .. ' ' .. result, 'PX', 300000)
return result
"""
    ).encode()
)
