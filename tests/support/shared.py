"""One service with default settings, for all tests of a process that leave it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.service import Service
from tests.support.tracing import traced
from tests.support.waiting import until_now

_TRACEBACK = "Traceback (most recent call last)"


class SharedService:
    """Started for the first test that wants it, and anew after a test that has broken it."""

    def __init__(self) -> None:
        self._service: Service | None = None
        self._last = ""
        """The test that had it before."""

    @contextmanager
    def lent(self, test: str) -> Iterator[Service]:
        """The service for one test: without a connection, with every worker ready.

        Raises:
            AssertionError: the test, or the one before, has not left it so.
        """
        service = self._ready()
        at = len(service.log)
        try:
            yield service
        finally:
            self._last = test
        said = service.log[at:]
        if _TRACEBACK in said:
            self._give_up()
            raise AssertionError(f"{test} made the service log a traceback:\n{said[-8000:]}")

    def stop(self) -> None:
        """Stop it, and assert that it was clean."""
        service, self._service = self._service, None
        if service is not None:
            service.stop()

    def _ready(self) -> Service:
        service = self._service
        if service is None:
            with traced():  # whatever the first test is
                service = self._service = Service().start()
        else:
            try:
                # Connections that its test has left open are gone by now, so look here.
                until_now(lambda: _is_idle(service), "no connection is left")
            except BaseException as error:
                error.add_note(f"of {self._last}, which had this service before")
                self._give_up()
                raise
        return service

    def _give_up(self) -> None:
        if self._service is not None:
            self._service.destroy()
        self._service = None


def _is_idle(service: Service) -> bool:
    assert service.process is not None
    assert service.process.poll() is None, "the service has ended"
    return service.is_idle()
