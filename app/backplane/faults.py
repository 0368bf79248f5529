"""What is wrong when the backplane fails a call: a cause, words for an operator, and what helps.

The words hold the server's own, shortened, and never the arguments of a command.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from redis.asyncio.sentinel import MasterNotFoundError
from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import InvalidResponse, RedisError
from redis.exceptions import TimeoutError as LibraryTimeout

from app.errors import BackplaneFull, BackplaneUnavailable, PresenceError

_LONGEST = 160
"""Characters of the server's own words that are kept."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a call failed."""

    cause: str
    """One of `CAUSES`: a label of metrics."""
    words: str
    """What is wrong, for people, as the end of 'the backplane cannot be used: '."""
    answered: bool = True
    """The server has answered, if only with an error."""
    passes: bool = False
    """Waiting may help: the call is worth repeating until its time is up."""
    elsewhere: bool = False
    """A new connection may lead to a server that can: a failover changes what a name means."""
    of_server: bool = True
    """Every call that writes fails likewise, whatever its keys."""


class TooFewReplicas(PresenceError, RedisError):
    """Something is stored, and fewer replicas than BACKPLANE_WAIT have confirmed it."""

    def __init__(self, reached: int, wanted: int) -> None:
        super().__init__(
            f"{reached} of {wanted} replicas have confirmed what was stored (BACKPLANE_WAIT)"
        )


class Unsettled(PresenceError, RedisError):
    """The nodes of a Cluster do not agree which of them has a type."""


class UnexpectedAnswer(PresenceError, RedisError):
    """An answer that is none to what was asked; what comes after it on its connection may be none either."""


MISREAD = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, AssertionError)
"""What taking apart an answer of another shape, or opening a connection to a nonsensical address, raises."""


def unexpected(error: Exception) -> UnexpectedAnswer:
    """The failure for one of `MISREAD`."""
    return UnexpectedAnswer(f"{type(error).__name__}: {error}")


@contextlib.contextmanager
def reading_answer() -> Iterator[None]:
    """What takes an answer apart in here fails with `UnexpectedAnswer` where the answer is none to the question."""
    try:
        yield
    except MISREAD as error:
        raise unexpected(error) from error


_BY_CODE: Final[dict[str, tuple[str, str]]] = {
    "READONLY": ("readonly", "it is a read-only replica"),
    "MASTERDOWN": ("masterdown", "it is a replica that has lost its primary"),
    "MISCONF": ("misconf", "it cannot write to its disk"),
    "NOREPLICAS": ("noreplicas", "too few of its replicas are in reach"),
    "LOADING": ("loading", "it is still loading its data"),
    "BUSY": ("busy", "a running script blocks it"),
    "OOM": ("oom", "its memory is full"),
    "CLUSTERDOWN": ("cluster", "its cluster is down"),
    "MOVED": ("cluster", "another node of its Cluster has the type"),
    "ASK": ("cluster", "another node of its Cluster has the type"),
    "CROSSSLOT": ("cluster", "it is a node of a Cluster"),
    "TRYAGAIN": ("cluster", "its cluster is being rearranged"),
    "NOAUTH": ("auth", "it asks for a password"),
    "WRONGPASS": ("auth", "it refuses the password"),
    "NOPERM": ("noperm", "its access rules forbid what is needed"),
    "UNBLOCKED": ("readonly", "it has become a replica"),
}
"""Code of an error reply -> cause, and what it means."""

_PASSES = frozenset({"CLUSTERDOWN", "LOADING", "TRYAGAIN", "UNBLOCKED"})
_ELSEWHERE = frozenset({"READONLY", "MASTERDOWN", "UNBLOCKED", "NOAUTH"})

CAUSES: Final = (
    *sorted({cause for cause, _ in _BY_CODE.values()}),
    "refused",
    "lost",
    "timeout",
    "no_primary",
    "unreplicated",
)
"""All causes: `refused` is any other error reply, or one that is none to the question, `lost` no connection, `timeout` no answer,
`no_primary` no Sentinel names one, `unreplicated` too few replicas have what was stored."""

# A server older than Redis 7 hides the code of an error inside a script in its text.
_HIDDEN = re.compile(rf"-({'|'.join(_BY_CODE)}) ")
# What follows names the script's line, or repeats the arguments of the caller.
_TAIL = re.compile(r"(,? with args beginning with:| script: (\w+, )?on @).*", re.DOTALL)
_FORBIDDEN = "ACL failure in script: "
"""How an access rule (NOPERM) shows when it forbids a command of a script."""


def explain(error: BaseException | None) -> Fault:
    """What a failed call says of the backplane."""
    if isinstance(error, TooFewReplicas):
        return Fault("unreplicated", str(error), passes=True)
    if isinstance(error, Unsettled):
        return Fault("cluster", str(error), passes=True)
    if isinstance(error, UnexpectedAnswer):
        words = f"its answer is none to what was asked ({_short(str(error))})"
        return Fault("refused", words, passes=True, of_server=False)
    if isinstance(error, MasterNotFoundError):
        return Fault("no_primary", _short(str(error)), answered=False, passes=True)
    code, text = _code(error)
    known = _BY_CODE.get(code)
    if known is not None:
        cause, plain = known
        return Fault(
            cause, _words(plain, code, text), passes=code in _PASSES, elsewhere=code in _ELSEWHERE
        )
    if isinstance(error, InvalidResponse):
        words = f"what answers is no Redis server ({_short(str(error))})"
        return Fault("lost", words, answered=False, passes=True)
    if isinstance(error, TimeoutError | LibraryTimeout):
        words = "it does not answer in time"
        return Fault("timeout", words, answered=False, passes=True)
    if isinstance(error, RedisError) and not isinstance(error, LostConnection):
        return Fault("refused", _words("it refuses a call", code, text), of_server=False)
    detail = _short(str(error or ""))
    words = f"the connection is lost ({detail})" if detail else "the connection is lost"
    return Fault("lost", words, answered=False, passes=True)


def _code(error: BaseException | None) -> tuple[str, str]:
    """The code of an error reply and the text behind it; the code is '' for anything else."""
    # The library wraps what the server says to the first commands of a connection.
    for found in (error, error.__cause__ if error is not None else None):
        if not isinstance(found, RedisError):
            continue
        text = str(found)
        if text.startswith(_FORBIDDEN):
            return "NOPERM", text.removeprefix(_FORBIDDEN)
        hidden = _HIDDEN.search(text)
        if hidden is not None:
            return hidden[1], text[hidden.end() :]
        if found.status_code:
            return str(found.status_code), text
        first, _, rest = text.partition(" ")
        if first in _BY_CODE:
            return first, rest
    return "", str(error or "")


def _words(plain: str, code: str, text: str) -> str:
    said = _short(text)
    own = f"{code} {said}" if code and code != "ERR" else said
    return f"{plain} ({own})" if own else plain


def _short(text: str) -> str:
    line = " ".join(_TAIL.sub("", text).split())
    shown = "".join(letter for letter in line if letter.isprintable())
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}…"


def unusable(error: Exception) -> BackplaneUnavailable:
    """What a worker that cannot start reports."""
    return BackplaneUnavailable(f"The backplane cannot be used: {explain(error).words}.")


def unavailable(error: BaseException | None, what: str) -> BackplaneUnavailable:
    """The error that a client gets for a failed call.

    Args:
        error: of the call.
        what: begins the message, such as 'The history cannot be read now'.
    """
    return of_fault(explain(error), what)


def combined(faults: Mapping[str, Fault]) -> Fault | None:
    """One fault that names the types which have any; None: none has."""
    if not faults:
        return None
    types: dict[str, list[str]] = {}
    for type, fault in sorted(faults.items()):
        types.setdefault(fault.words, []).append(type)
    words = "; ".join(f"{', '.join(names)}: {words}" for words, names in types.items())
    return replace(next(iter(faults.values())), words=words)


def of_fault(fault: Fault, what: str) -> BackplaneUnavailable:
    """As `unavailable`, of a fault that is explained already."""
    message = f"{what}; the backplane has a fault: {fault.words}."
    return BackplaneFull(message) if fault.cause == "oom" else BackplaneUnavailable(message)
