"""uWebSockets in the build of `socketify`: topics."""

from __future__ import annotations

import json
from typing import Any

from socketify import App, AppListenOptions, CompressOptions, OpCode

from benchmarks.peers.wire import arguments, envelope, messages

numbers = iter(range(1, 2**53))


async def publish(response: Any, _request: Any) -> None:
    """Publish each message of the request to the topic of its type."""
    body = messages(await response.get_json())
    for message in body:
        text = json.dumps(envelope(message, next(numbers)), separators=(",", ":"))
        app.publish(message["type"], text, OpCode.TEXT)
    response.end({"taken": len(body)})


app = App()
app.ws(
    "/ws/realtime",
    {
        "compression": CompressOptions.DISABLED,
        "idle_timeout": 960,
        "open": lambda ws: ws.subscribe("status"),
    },
)
app.get("/status", lambda response, _request: response.end({}))
app.post("/ws/broadcast", publish)
app.listen(AppListenOptions(port=arguments().port, host="127.0.0.1"))
app.run()
