"""Names of workers in the backplane: machine, row and generation in its slot table, and a random part."""

from __future__ import annotations

from typing import NamedTuple

from app.types import WorkerRow

_PARTS = 4
_MOST_DIGITS = 19
"""Of a row or a generation: another program may have written more."""


class Place(NamedTuple):
    """A worker of a machine, as its slot table knows it."""

    row: int
    generation: int


UNKNOWN = b"", Place(-1, -1)
"""No machine, and no row that is in use."""


def place_of(name: bytes) -> tuple[bytes, Place]:
    """The machine of a worker, and its place there; `UNKNOWN` for what is no name of a worker."""
    parts = name.split(b"-")
    if len(parts) != _PARTS or not all(map(_is_number, parts[1:3])):
        return UNKNOWN
    return parts[0], Place(int(parts[1]), int(parts[2]))


def place_of_row(row: WorkerRow) -> Place:
    """The place of a worker that the slot table has."""
    return Place(row.index, row.generation)


def _is_number(text: bytes) -> bool:
    return text.isdigit() and len(text) <= _MOST_DIGITS
