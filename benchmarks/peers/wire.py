"""What both peers share: the envelope, text frames and the command line."""

from __future__ import annotations

import argparse
import json
import time
import uuid
from typing import Any

EPOCH = "bench000"


def arguments() -> argparse.Namespace:
    """Parse the command line of a peer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    return parser.parse_args()


def messages(body: Any) -> list[dict[str, Any]]:
    """Messages of a publish request: one, or an array of them."""
    return body if isinstance(body, list) else [body]


def envelope(message: dict[str, Any], seq: int) -> dict[str, Any]:
    """Wrap a published message as the service does, so that all servers send equal bytes."""
    return {
        "id": str(uuid.uuid4()),
        "type": message["type"],
        "timestamp": int(time.time() * 1000),
        "direction": "server-to-client",
        "event": message["event"],
        "data": message["data"],
        "seq": seq,
        "epoch": EPOCH,
    }


def text_frame(value: Any) -> bytes:
    """A finished WebSocket text frame from server to client (RFC 6455 section 5.2)."""
    payload = json.dumps(value, separators=(",", ":")).encode()
    size = len(payload)
    if size < 126:
        return bytes((0x81, size)) + payload
    if size < 65536:
        return bytes((0x81, 126)) + size.to_bytes(2, "big") + payload
    return bytes((0x81, 127)) + size.to_bytes(8, "big") + payload
