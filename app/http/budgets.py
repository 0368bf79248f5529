"""Budgets of one address for HTTP: requests, time of the loop, and invalid tokens.

Each is a bucket that empties at a steady rate: it may be filled by a burst, such as the loading of a
page by many users behind one proxy, and then as fast as it empties. All addresses together may use
`HTTP_SHARE` of the loop's time; beyond that those are refused that used more than an even part of it.
IPv6 addresses count by their /64, which is what one customer has.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from app.sessions.addresses import network_of

BURST = 10.0
"""Seconds of its share that an address may use at once."""
WRONG_TOKENS = 20.0
"""Wrong tokens after which those of an address are refused."""
REFUSED_RATE = 1.0
"""Refusals of an address that are forgotten, a second."""
WRONG_TOKENS_RATE = 0.5
"""Wrong tokens that are forgotten, a second."""
HTTP_SHARE = 0.2
"""Part of its time that a worker uses for requests over HTTP, before some of them are refused."""
MAX_ADDRESSES = 10_000
"""Addresses that are known at once; the one that asked last longest ago is forgotten."""
RETRY_SECONDS = 2
"""Minimum `Retry-After` of a refused client."""
_LEAST_SHARE = 0.002
"""Seconds a second that an address may always use: some ten requests."""


class Account:
    """What one address has used and what of it counts still."""

    __slots__ = ("at", "refused", "requests", "second", "seconds", "used", "waiting", "wrong")

    def __init__(self, now: float) -> None:
        self.at = now
        self.requests = 0.0
        self.seconds = 0.0
        self.wrong = 0.0
        self.refused = 0.0
        """Requests that were refused, for how long the next are held back."""
        self.second = 0.0
        """When the second began that `used` belongs to."""
        self.used = 0.0
        """Time of the loop in that second."""
        self.waiting = 0
        """Refusals that are being held back."""


class Budgets:
    """The accounts of all addresses.

    Args:
        requests: a second, of one address; 0: no limit.
        seconds: of the loop's time a second, of one address; 0: no limit.
        clock: monotonic seconds.
    """

    def __init__(
        self, requests: float, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._requests = requests or float("inf")
        """A second, of one address; infinite without a limit."""
        self._seconds = seconds or float("inf")
        """Of the loop's time, likewise."""
        self._clock = clock
        self._accounts: OrderedDict[str, Account] = OrderedDict()
        """By address or IPv6 network, the one that was used last at the end."""
        self._second = clock()
        """When this second began (seconds of `clock`)."""
        self._total = 0.0
        """Seconds of the loop that all have used in it."""
        self._active: set[str] = set()
        """Addresses that have asked for anything in it."""

    def __len__(self) -> int:
        return len(self._accounts)

    def account(self, address: str) -> Account:
        """The account of an address, brought up to date."""
        key = network_of(address)
        now = self._clock()
        account = self._accounts.get(key)
        if account is None:
            if len(self._accounts) >= MAX_ADDRESSES:
                self._accounts.popitem(last=False)
            account = self._accounts[key] = Account(now)
        else:
            self._accounts.move_to_end(key)
            elapsed, account.at = now - account.at, now
            account.requests = max(0.0, account.requests - elapsed * self._requests)
            account.seconds = max(0.0, account.seconds - elapsed * self._seconds)
            account.wrong = max(0.0, account.wrong - elapsed * WRONG_TOKENS_RATE)
            account.refused = max(0.0, account.refused - elapsed * REFUSED_RATE)
        if now - self._second >= 1.0:
            self._second, self._total = now, 0.0
            self._active.clear()
        self._active.add(key)
        if account.second != self._second:
            account.second, account.used = self._second, 0.0
        return account

    def admits(self, account: Account) -> bool:
        """Count a request; False when it is one too many."""
        if account.requests >= self._requests * BURST or account.seconds >= self._seconds * BURST:
            return False
        elapsed = self._clock() - self._second + 0.1
        if self._total > HTTP_SHARE * elapsed:
            share = max(HTTP_SHARE / len(self._active), _LEAST_SHARE)
            if account.used > share * elapsed:
                return False
        account.requests += 1
        return True

    def spend(self, account: Account, seconds: float) -> None:
        """Count time of the loop."""
        account.seconds += seconds
        account.used += seconds
        self._total += seconds

    def wrong_token(self, account: Account) -> float:
        """Count a wrong token; returns the seconds for which the answer is to be held back."""
        account.wrong += 1
        return min(1.0, account.wrong / WRONG_TOKENS)

    @staticmethod
    def refuses_tokens(account: Account) -> bool:
        """Whether an address has tried so many wrong tokens that no other is looked at."""
        return account.wrong >= WRONG_TOKENS
