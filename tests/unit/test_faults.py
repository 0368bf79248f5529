"""What failed calls say of the backplane."""

from __future__ import annotations

import pytest
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    InvalidResponse,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import TimeoutError as LibraryTimeout

from app.backplane.faults import (
    CAUSES,
    Fault,
    UnexpectedAnswer,
    Unsettled,
    combined,
    explain,
    unavailable,
)
from app.errors import BackplaneFull, BackplaneUnavailable, ErrorCode


def wrapped(inner: RedisError) -> LostConnection:
    """As the library raises what the server says to a connection's first commands."""
    error = LostConnection(str(inner))
    error.__cause__ = inner
    return error


REPLIES: list[tuple[Exception, str, bool, bool]] = [
    (ReadOnlyError("You can't write", status_code="READONLY"), "readonly", False, True),
    (ResponseError("MISCONF Errors writing to the AOF file: No space"), "misconf", False, False),
    (ResponseError("NOREPLICAS Not enough good replicas"), "noreplicas", False, False),
    (ResponseError("BUSY Valkey is busy running a script."), "busy", False, False),
    (BusyLoadingError("Valkey is loading", status_code="LOADING"), "loading", True, False),
    (OutOfMemoryError("command not allowed", status_code="OOM"), "oom", False, False),
    (ResponseError("UNBLOCKED force unblock"), "readonly", True, True),
    (ClusterDownError("Hash slot not served", status_code="CLUSTERDOWN"), "cluster", True, False),
    (TryAgainError("Multiple keys", status_code="TRYAGAIN"), "cluster", True, False),
    (MovedError("1 10.0.0.1:1", status_code="MOVED"), "cluster", False, False),
    (Unsettled("its nodes do not agree"), "cluster", True, False),
    (NoPermissionError("User default", status_code="NOPERM"), "noperm", False, False),
    (ResponseError("ACL failure in script: User u has no permissions"), "noperm", False, False),
    (wrapped(AuthenticationError("invalid", status_code="WRONGPASS")), "auth", False, False),
    (wrapped(AuthenticationError("required", status_code="NOAUTH")), "auth", False, True),
    (ResponseError("Error running script: @user_script: 9: -OOM command not"), "oom", False, False),
    (ResponseError("WRONGTYPE Operation against a key"), "refused", False, False),
    (ResponseError("STALE batch"), "refused", False, False),
    (TimeoutError(), "timeout", True, False),
    (LibraryTimeout("Timeout connecting to server"), "timeout", True, False),
    (UnexpectedAnswer("ValueError: no list"), "refused", True, False),
    (LostConnection("Error 111 connecting to 127.0.0.1:1."), "lost", True, False),
    (ConnectionResetError(104, "Connection reset by peer"), "lost", True, False),
    (InvalidResponse('Protocol error, got "H" as reply type byte'), "lost", True, False),
]  # fmt: skip


@pytest.mark.parametrize(("error", "cause", "passes", "elsewhere"), REPLIES)
def test_errors_are_distinguished(
    error: Exception, cause: str, passes: bool, elsewhere: bool
) -> None:
    fault = explain(error)
    assert (fault.cause, fault.passes, fault.elsewhere) == (cause, passes, elsewhere)
    assert fault.answered is (cause not in ("timeout", "lost"))
    assert fault.of_server is (cause != "refused")
    assert fault.cause in CAUSES


def test_words_are_the_servers_own_and_short() -> None:
    fault = explain(ResponseError("MISCONF Errors writing to the AOF file: " + "No space " * 90))
    assert fault.words.startswith("it cannot write to its disk (MISCONF Errors writing to the AOF")
    assert len(fault.words) < 220


def test_words_hold_no_arguments_and_no_place_in_a_script() -> None:
    said = "unknown command 'EVALSHA', with args beginning with: 'sha' 'a secret' "
    assert explain(ResponseError(said, status_code="ERR")).words == (
        "it refuses a call (unknown command 'EVALSHA')"
    )
    said = "NOREPLICAS Not enough good replicas to write. script: on @user_script:1."
    assert explain(ResponseError(said)).words == (
        "too few of its replicas are in reach (NOREPLICAS Not enough good replicas to write.)"
    )


def test_only_a_full_memory_has_a_code_of_its_own() -> None:
    full = unavailable(OutOfMemoryError("no", status_code="OOM"), "No")
    assert isinstance(full, BackplaneFull)
    assert full.code is ErrorCode.BACKPLANE_FULL
    other = unavailable(ResponseError("MISCONF no"), "No")
    assert type(other) is BackplaneUnavailable
    assert (
        other.message == "No; the backplane has a fault: it cannot write to its disk (MISCONF no)."
    )


def test_nothing_is_a_lost_connection() -> None:
    assert explain(None) == Fault(
        "lost", "the connection is lost", answered=False, passes=True, elsewhere=False
    )


def test_faults_of_types_are_one_that_names_them() -> None:
    lost, down = explain(LostConnection("x")), explain(ClusterDownError("y"))
    assert combined({}) is None
    found = combined({"status": lost, "config": down, "control": lost})
    assert found is not None
    assert found.words == f"config: {down.words}; control, status: {lost.words}"
