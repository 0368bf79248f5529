"""What failed calls say of the backplane."""

from __future__ import annotations

import asyncio

import pytest

from app.backplane.client import Backplane
from app.config import Settings
from tests.support.valkeys import ValkeyProcess


@pytest.mark.parametrize(
    ("limit", "warned"), [(0, False), (400 * 2**20, False), (64 * 2**20, True)]
)
async def test_a_server_that_is_too_small_is_a_warning(
    valkey: ValkeyProcess, limit: int, warned: bool
) -> None:
    """Whoever has limited it: an operator, or the service."""
    await valkey.command("CONFIG", "SET", "maxmemory", limit)
    backplane = Backplane(valkey.url, Settings(), "test")
    await backplane.connect(asyncio.get_running_loop().time() + 5)
    found = [text for text in backplane.warnings() if "maxmemory " in text]
    assert len(found) == warned
    if warned:
        assert "HISTORY_BYTES" in found[0]
        assert "64 MB" in found[0]
    await backplane.close()
