"""Alarms on thresholds, with hysteresis: a value that wavers about its threshold rings once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SAMPLES = 3
"""So many samples in a row raise an alarm, or clear it."""

MARGIN = 5.0
"""Points that a value must fall below its threshold before the alarm is cleared.

Half the threshold is enough where that is less.
"""

_LATEST = 1e11  # Unix seconds; a time in milliseconds is no such time


class Alarm:
    """Watches one percentage.

    Whether the clients know of a change is kept apart from the change: what could not be
    published is still `news` at the next sample, unless it has changed back meanwhile.

    Args:
        metric: its name on the wire.
        title: its name in messages for people.
        threshold: in percent; the alarm is raised above it.
    """

    def __init__(self, metric: str, title: str, threshold: float) -> None:
        self.metric = metric
        self._title = title
        self._threshold = threshold
        self._raised = False
        """By the samples."""
        self._published = False
        """For the clients."""
        self._since = 0.0
        """Unix time of the first sample of the alarm that clients know."""
        self._began = 0.0
        """Unix time of the first sample of the streak."""
        self._streak = 0
        """Samples in a row that speak against the present state."""
        self._value = 0.0
        """The last sample, in percent."""

    @property
    def is_near(self) -> bool:
        """Whether the last sample was one of those that raise or clear the alarm."""
        return self._streak > 0

    def sample(self, value: float, now: float) -> None:
        """Take a sample at Unix time `now`."""
        self._value = value
        low = max(self._threshold - MARGIN, self._threshold / 2)
        against = value < low if self._raised else value > self._threshold
        if not against:
            self._streak = 0
            return
        if self._streak == 0:
            self._began = now
        self._streak += 1
        if self._streak < SAMPLES:
            return
        self._streak = 0
        self._raised = not self._raised
        # If the end of the last alarm was never published, it is still active for clients.
        if self._raised and not self._published:
            self._since = self._began

    def news(self) -> tuple[str, dict[str, object]] | None:
        """Event and data to publish, if there is a change."""
        if self._raised == self._published:
            return None
        value = f"{self._title} is at {self._value:.0f} %"
        if self._raised:
            event = "health_alert"
            critical = self._value >= (self._threshold + 100) / 2
            level = "critical" if critical else "warning"
            message = f"{value}, above {self._threshold:g} %."
        else:
            event, level = "health_recovery", "info"
            message = f"{value}, below {self._threshold:g} % again."
        data: dict[str, object] = {
            "metric": self.metric,
            "value": self._value,
            "threshold": self._threshold,
            "level": level,
            "message": message,
            "since": round(self._since * 1000),
        }
        return event, data

    def note_published(self) -> None:
        """The event has been published."""
        self._published = self._raised

    def dump(self) -> dict[str, Any]:
        """What another leader must know, as JSON values."""
        return {"raised": self._raised, "told": self._published, "since": self._since}

    def load(self, dumped: Mapping[str, Any]) -> None:
        """Go on where another left off.

        Raises:
            ValueError: it was not made by `dump`; nothing has changed then.
        """
        try:
            since = float(dumped["since"])
            raised, published = dumped["raised"], dumped["told"]
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"the alarm is damaged: {error!r}") from error
        if not (isinstance(raised, bool) and isinstance(published, bool) and 0 <= since < _LATEST):
            raise ValueError("the alarm is damaged: a field has a wrong value")
        self._raised, self._published, self._since = raised, published, since
