"""Failures of the network, for people."""

from __future__ import annotations

import os

import aiohttp


def describe(error: Exception) -> str:
    """What went wrong, without the names of a library's own parts."""
    if isinstance(error, aiohttp.ClientConnectorError):
        cause = error.os_error
        number = cause.errno or 0
        text = os.strerror(number) if number > 0 else str(cause.strerror or cause)
        return f"Cannot connect to {error.host}:{error.port}: {text}."
    return str(error) or type(error).__name__
