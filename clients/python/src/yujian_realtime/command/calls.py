"""The commands that make calls over HTTP: history, publish, presence, connections, status, token, users."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, TextIO, cast
from urllib.parse import quote

from yujian_realtime.client import Realtime
from yujian_realtime.closing import Ending
from yujian_realtime.command.exits import Exit, Failure, failure_of_ending, reporting
from yujian_realtime.command.settings import Connection
from yujian_realtime.command.text import (
    clock,
    compact,
    duration,
    has_colour,
    moment,
    paint,
    printable,
    summary,
)
from yujian_realtime.errors import PublishError
from yujian_realtime.http import HttpClient, unreadable
from yujian_realtime.messages import State as LinkState
from yujian_realtime.publisher import Draft, Publisher, Stored

PAGE = 100
"""Messages that one call for the history brings."""

ROWS = 500
"""Connections that one call brings."""

State = Literal["idle", "working", "offline"]
Priority = Literal["high", "normal", "low"]


def _print(line: str) -> None:
    print(line, flush=True)


def _json(value: object) -> None:
    _print(json.dumps(value, ensure_ascii=False))


async def history(
    connection: Connection, type: str, limit: int, before: int | None, *, as_json: bool
) -> Exit:
    """Print the newest messages of a type, the newest last.

    Args:
        connection: which service.
        type: of the messages.
        limit: how many; 0: all that are kept.
        before: only those with a lower `seq`; None: up to the newest.
        as_json: one envelope a line.
    """
    pages: list[list[dict[str, Any]]] = []
    left = limit
    with reporting(connection.url):
        async with HttpClient(connection.url, connection.bearer()) as client:
            while True:
                query: dict[str, str | int] = {
                    "type": type,
                    "limit": min(left, PAGE) if limit else PAGE,
                }
                if before is not None:
                    query["before"] = before
                answer = await client.get("/history", query)
                messages = answer["messages"]
                pages.append(messages)
                left -= len(messages)
                if not messages or not answer["more"] or (limit and left <= 0):
                    break
                before = messages[0]["seq"]
    for page in reversed(pages):
        for message in page:
            if as_json:
                _json(message)
            else:
                text = printable(summary(message["event"], message["data"]))
                place = f"{clock(message['timestamp'])}  {message['event']}  {message['seq']}"
                _print(f"{place}  {text}")
    return Exit.OK


def _require_json(value: object) -> None:
    """Raise ValueError for what Python reads as JSON, and a message cannot hold: NaN, say."""
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


def parse_data(text: str) -> Any:
    """The value of a DATA argument.

    Raises:
        Failure: it is no JSON.
    """
    try:
        data = json.loads(text)
        _require_json(data)
        return data
    except (ValueError, RecursionError) as error:
        hint = f'DATA is not JSON ({error}): write \'{{"text": "hello"}}\' or \'"hello"\'.'
        raise Failure(Exit.USAGE, hint) from None


async def publish(connection: Connection, draft: Draft, *, as_json: bool) -> Exit:
    """Publish one message and print where it stands."""
    token = connection.require_publish_token()
    with reporting(connection.url):
        async with Publisher(connection.url, token) as publisher:
            stored = await publisher.publish(
                draft.type, draft.event, draft.data, priority=draft.priority, id=draft.id
            )
    _stored(stored, as_json=as_json)
    return Exit.OK


def _stored(stored: Stored, *, as_json: bool) -> None:
    if as_json:
        _json({"id": stored.id, "type": stored.type, "seq": stored.seq, "epoch": stored.epoch})
    else:
        _print(f"{stored.type}  {stored.seq}  {stored.id}")


def read_drafts(lines: Iterable[str]) -> Iterator[Draft]:
    """Messages of JSON lines, `{"type", "event", "data", "priority"?, "id"?}`.

    Raises:
        Failure: a line is none.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            fields.setdefault("data", None)
            _require_json(fields)
            yield Draft(**fields)
        except (ValueError, TypeError, AttributeError, RecursionError):
            wanted = '{"type": ..., "event": ..., "data": ...}'
            raise Failure(Exit.USAGE, f"Line {number} is no message: write {wanted}.") from None


async def publish_lines(connection: Connection, lines: TextIO, *, as_json: bool) -> Exit:
    """Publish the messages of JSON lines in batches, and print where each stands."""
    token = connection.require_publish_token()
    drafts = list(read_drafts(lines))
    code = Exit.OK
    with reporting(connection.url):
        async with Publisher(connection.url, token) as publisher:
            results = await publisher.publish_many(drafts)
    for result in results:
        if isinstance(result, Stored):
            _stored(result, as_json=as_json)
            continue
        code = Exit.REFUSED
        if as_json:
            _json({"id": result.id, "error": result.message, "code": result.code})
        print(f"yujian: {result.id}: {result.message} ({result.code})", file=sys.stderr)
    return code


async def presence_get(connection: Connection, *, as_json: bool) -> Exit:
    """Print what the lab does."""
    presence = (await _status(connection)).get("presence")
    if not isinstance(presence, dict):
        raise Failure(Exit.REFUSED, f"{connection.url}: the service says nothing of a presence.")
    if as_json:
        _json(presence)
    else:
        task = presence.get("task")
        _print(printable(str(presence["state"]) + (f"  {task}" if task else "")))
    return Exit.OK


async def presence_set(
    connection: Connection, state: str, task: str | None, *, as_json: bool
) -> Exit:
    """Set what the lab does, and print it."""
    token = connection.require_publish_token()
    with reporting(connection.url):
        async with Publisher(connection.url, token) as publisher:
            presence = await publisher.set_presence(cast("State", state), task)
    if as_json:
        _json(presence)
    else:
        _print(printable(state + (f"  {task}" if task else "")))
    return Exit.OK


async def _status(connection: Connection) -> dict[str, Any]:
    with reporting(connection.url):
        # Where clients need a token, strangers are not shown everything.
        async with HttpClient(connection.url, connection.bearer(), attempts=3) as client:
            status = await client.get("/status", check=False)
        if "status" not in status:
            raise unreadable()
    return status


async def connections(
    connection: Connection,
    user: str | None,
    type: str | None,
    protocol: str | None,
    limit: int,
    *,
    by_user: bool,
    as_json: bool,
) -> Exit:
    """Print connections, or users, of all workers.

    Args:
        connection: which service.
        user: only those of this user; None: all.
        type: only those that are subscribed to this type; None: all.
        protocol: only those that speak this one; None: all.
        limit: how many; 0: all.
        by_user: users in place of connections.
        as_json: one row a line.
    """
    token = connection.require_publish_token()
    path, rows = ("/connections/users", "users") if by_user else ("/connections", "connections")
    key = "user" if by_user else "id"
    query: dict[str, str | int] = {}
    if user is not None and not by_user:
        query["user"] = user
    if type is not None:
        query["type"] = type
    if protocol is not None:
        query["protocol"] = protocol
    printed = 0
    with reporting(connection.url):
        async with HttpClient(connection.url, token) as client:
            while True:
                query["limit"] = min(limit - printed, ROWS) if limit else ROWS
                page = await client.get(path, query)
                for row in page[rows]:
                    _print_row(row, as_json=as_json)
                printed += len(page[rows])
                if not page["more"] or not page[rows] or (limit and printed >= limit):
                    break
                query["after"] = page[rows][-1][key]
    if not as_json:
        nameless = f", {page['anonymous']} without a name" if by_user else ""
        shown = f"{printed} shown, " if page["more"] else ""
        total = f"{shown}{page['total']} connections{nameless} at {page['workers']} workers"
        print(total, file=sys.stderr)
    return Exit.OK


async def users(connection: Connection, type: str, limit: int, *, as_json: bool) -> Exit:
    """Print the users that are subscribed to a type, by name.

    Args:
        connection: which service.
        type: of messages.
        limit: how many; 0: all.
        as_json: one row a line.
    """
    lab = Realtime(connection.url, token=connection.reader_token(), history=0)
    lost: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()

    def note(state: LinkState) -> None:
        if state.name == "waiting" and not lost.done():
            lost.set_result(Ending(state.code or 1006, message=state.message))

    lab.on("state", note)
    with reporting(connection.url):
        async with lab:
            opened = asyncio.create_task(lab.opened())
            await asyncio.wait((opened, lost), return_when=asyncio.FIRST_COMPLETED)
            if not opened.done():
                opened.cancel()
                raise failure_of_ending(lost.result(), connection.url)
            await opened
            page = await lab.presence(type, 1)
            printed = 0
            async for row in lab.users(type):
                if limit and printed == limit:
                    break
                _print_row(cast("dict[str, Any]", row), as_json=as_json)
                printed += 1
    if not as_json:
        total, connections = page.get("total", printed), page["connections"]
        shown = f"{printed} shown, " if printed < total else ""
        print(f"{shown}{total} users with a name, {connections} connections", file=sys.stderr)
    return Exit.OK


def _print_row(row: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        _json(row)
    elif "id" in row:
        types = ",".join(row["types"]) or "-"
        user = row["user"] if row["user"] is not None else "-"
        place = f"{row['host']}/{row['worker']}"
        since = moment(row.get("since"))
        _print(printable(f"{row['id']}  {user}  {row['protocol']}  {types}  {place}  {since}"))
    else:
        _print(printable(f"{row['connections']:>6}  {row['user']}"))


async def close_connections(
    connection: Connection, ids: list[str], user: str | None, *, revoked: bool, as_json: bool
) -> Exit:
    """Close connections, by their ids or all of a user."""
    token = connection.require_publish_token()
    closed = 0
    query: dict[str, str | int] = {"code": 4401} if revoked else {}
    with reporting(connection.url):
        async with HttpClient(connection.url, token) as client:
            for id in ids:
                path = f"/connections/{quote(id, safe='')}"
                try:
                    answer = await client.call("DELETE", path, query=query)
                except PublishError as error:
                    if error.status != 404:
                        raise
                else:
                    closed += answer.body["closed"]
            if user is not None:
                answer = await client.call("DELETE", "/connections", query={**query, "user": user})
                closed += answer.body["closed"]
    if as_json:
        _json({"closed": closed})
    else:
        _print(f"{closed} closed")
    return Exit.OK if closed else Exit.REFUSED


async def status(connection: Connection, *, as_json: bool) -> Exit:
    """Print the state of the service."""
    state = await _status(connection)
    if as_json:
        _json(state)
    else:
        for name, text in _rows(state):
            _print(f"{name:<12}{printable(text)}")
    return Exit.OK if state["status"] == "ok" else Exit.REFUSED


def _rows(state: dict[str, Any]) -> Iterator[tuple[str, str]]:
    colour = has_colour(sys.stdout)
    word = str(state["status"])
    yield "service", connection_word(word, on=colour)
    for cause in state.get("causes") or ():
        yield "cause", cause if isinstance(cause, str) else compact(cause)
    if "version" in state:
        yield "version", str(state["version"])
    if isinstance(state.get("uptime"), int | float):
        yield "uptime", duration(state["uptime"])
    if "connections" in state:
        yield "connections", f"{state['connections']} of {state.get('maxConnections', '?')}"
    for worker in state.get("workers") or ():
        if isinstance(worker, dict):
            # A service whose clients need a token does not tell strangers the pid.
            name = f"{worker['pid']}  " if "pid" in worker else ""
            yield "worker", f"{name}{worker.get('state')}  {worker.get('connections')} connections"
    presence = state.get("presence")
    if isinstance(presence, dict):
        task = presence.get("task")
        yield "presence", str(presence.get("state")) + (f"  {task}" if task else "")


def connection_word(word: str, *, on: bool) -> str:
    """`ok` in green, anything else in red."""
    return paint(word, "green" if word == "ok" else "red", on=on)


def token(
    connection: Connection, user: str, ttl: float | None, claims: Mapping[str, object]
) -> Exit:
    """Print a client's token that is signed with AUTH_SECRET."""
    _print(connection.sign(user, ttl, claims))
    return Exit.OK
