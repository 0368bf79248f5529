"""Messages of the plain protocol as clients get them, and what must be true of their order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Envelope = dict[str, Any]


def summary(received: list[Envelope]) -> str:
    """Messages as a short line for a failed assertion."""
    short = [
        f"{got.get('event')}:{got.get('type')}:{got.get('seq', '')}{got['data'] if 'code' in str(got.get('data')) else ''}"
        for got in received[-12:]
    ]
    return f"{len(received)} messages, the last: {short}"


def flatten(received: Iterable[Envelope]) -> list[Envelope]:
    """Messages in order, those in a `batch_update` unpacked."""
    flat: list[Envelope] = []
    for got in received:
        flat += got["data"]["messages"] if got["event"] == "batch_update" else [got]
    return flat


def reaches(got: Envelope, type: str, seq: int) -> bool:
    """Whether this message, or one in this batch, brings a client to `seq` of a type."""
    for one in flatten([got]):
        if one["type"] != type:
            continue
        if one.get("seq", 0) >= seq:
            return True
        if one["event"] == "gap" and one["data"]["last"] >= seq:
            return True
    return False


@dataclass
class Walk:
    """What a client knows of one stream after a walk over its messages."""

    seqs: list[int]
    """Every `seq` that came, in order."""
    gaps: list[Envelope]
    last: int
    """Where the client stands: the last message or the end of the last gap."""
    epoch: str


def walk(received: Iterable[Envelope], type: str) -> Walk:
    """Assert that `seq` of a type rose by one, or a gap said why not; promise 3."""
    seqs: list[int] = []
    gaps: list[Envelope] = []
    last: int | None = None
    epoch = ""
    for got in flatten(received):
        if got["type"] != type:
            continue
        if got["event"] == "gap":
            data = got["data"]
            gaps.append(got)
            if data["reason"] != "epoch" and last is not None:
                assert data["first"] == last + 1, f"gap {data} after seq {last} of {type}"
            last, epoch = data["last"], data["epoch"]
        elif "seq" in got:
            if last is not None:
                assert got["seq"] == last + 1, f"{type}: seq {got['seq']} after {last}"
                assert got["epoch"] == epoch, f"{type}: another epoch without a gap"
            last, epoch = got["seq"], got["epoch"]
            seqs.append(got["seq"])
    return Walk(seqs, gaps, last or 0, epoch)
