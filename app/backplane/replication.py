"""What a server's INFO says of its replication.

A replica of a machine (workers/leader/replica.py) listens on a Unix socket alone and so announces port 0.
It never becomes a primary and keeps nothing on disk: it is none of those that make a message safe.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Attached:
    """A replica, as its primary describes it."""

    host: str
    port: int
    """0: the replica of a machine."""
    online: bool


@dataclass(frozen=True, slots=True)
class Replication:
    """The section `replication` of INFO."""

    role: str
    """`master` or `slave`."""
    history: str
    """The replication id."""
    offset: int
    """Bytes of the replication stream that it has."""
    primary: tuple[str, int]
    """Host and port that it follows; of a primary ('', 0)."""
    linked: bool
    """Whether it follows its primary now."""
    counts_replicas: bool
    """Whether it takes writes only while enough replicas are in reach (`min-replicas-to-write`)."""
    attached: list[Attached] = field(default_factory=list)
    """What follows it."""

    @classmethod
    def of(cls, info: str) -> Replication:
        """Read it; what is missing counts as zero."""
        facts = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
        return cls(
            role=facts.get("role", ""),
            history=facts.get("master_replid", ""),
            offset=_number(facts.get("slave_repl_offset", facts.get("master_repl_offset"))),
            primary=(facts.get("master_host", ""), _number(facts.get("master_port"))),
            linked=facts.get("master_link_status") == "up",
            counts_replicas="min_slaves_good_slaves" in facts,
            attached=[
                _attached(value)
                for name, value in facts.items()
                if name.startswith("slave") and name[5:].isdigit()
            ],
        )

    @property
    def replicas(self) -> list[Attached]:
        """Those attached that can become a primary."""
        return [one for one in self.attached if one.port]


def _attached(text: str) -> Attached:
    # ip=10.0.0.2,port=6379,state=online,offset=...: an IPv6 address has no '=' or ',' either.
    words = dict(word.split("=", 1) for word in text.split(",") if "=" in word)
    return Attached(words.get("ip", ""), _number(words.get("port")), words.get("state") == "online")


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isdigit() else 0
