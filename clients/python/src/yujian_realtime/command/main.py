"""The command line of `yujian`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from yujian_realtime import __version__
from yujian_realtime.command import calls
from yujian_realtime.command.exits import MEANINGS, Exit, Failure
from yujian_realtime.command.load import Plan, load
from yujian_realtime.command.settings import Connection, seconds
from yujian_realtime.command.watch import Watch
from yujian_realtime.publisher import Draft

DEFAULT_TYPES = ("status", "stats", "health")

_ABOUT = """\
Watch, publish and operate a Yujian Presence from a terminal.

The address comes from --url, YUJIAN_URL, or BIND in .env of this directory; else it is http://127.0.0.1:3001.
A reader's token comes from --token or YUJIAN_TOKEN; with AUTH_SECRET in .env one is signed for this command.
The publish token comes from --publish-token or PUBLISH_TOKEN. The environment wins over .env.
"""


def _exits() -> str:
    lines = [f"  {int(code)}  {meaning}" for code, meaning in MEANINGS.items()]
    return "exit codes:\n" + "\n".join(lines)


def _examples(*lines: str) -> str:
    return "examples:\n" + "\n".join(f"  {line}" for line in lines) + "\n\n" + _exits()


def _duration(text: str) -> float:
    try:
        return seconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def parser() -> argparse.ArgumentParser:  # noqa: PLR0915 - a list of commands
    """The parser of the command line."""
    common = argparse.ArgumentParser(add_help=False)
    where = common.add_argument_group("which service")
    where.add_argument("--url", metavar="URL", help="http(s)://host:port of the service")
    where.add_argument("--token", help="a reader's JWT, where the service asks for one")
    where.add_argument("--publish-token", metavar="TOKEN", help="for what writes")
    shape = argparse.ArgumentParser(add_help=False)
    shape.add_argument("--json", action="store_true", help="JSON, one value a line, for programs")

    top = argparse.ArgumentParser(
        prog="yujian",
        description=_ABOUT,
        epilog=_exits(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, help: str, epilog: str, *more: argparse.ArgumentParser) -> Any:
        return commands.add_parser(
            name,
            help=help,
            description=help[0].upper() + help[1:] + ".",
            epilog=epilog,
            parents=[common, *more],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    watch = add(
        "watch",
        "follow messages as they come: a table on a terminal, lines elsewhere",
        _examples(
            "yujian watch status health",
            "yujian watch all --json | jq .data",
            "yujian watch config --history 0 --count 1   # wait for the next one",
        ),
        shape,
    )
    watch.add_argument(
        "types",
        nargs="*",
        default=list(DEFAULT_TYPES),
        metavar="TYPE",
        help="types of messages, or all (default: status stats health)",
    )
    watch.add_argument(
        "--history",
        type=int,
        choices=range(101),
        default=1,
        metavar="N",
        help="newest messages of each type that come first, 0 to 100 (default: 1)",
    )
    watch.add_argument(
        "--count", type=_positive, default=0, metavar="N", help="end after N messages"
    )

    history = add(
        "history",
        "print messages of the past, the newest last",
        _examples("yujian history health --limit 10", "yujian history status --all --json"),
        shape,
    )
    history.add_argument("type", metavar="TYPE")
    history.add_argument(
        "--limit", type=_positive, default=20, metavar="N", help="how many (default: 20)"
    )
    history.add_argument("--all", action="store_true", help="all that the service keeps")
    history.add_argument(
        "--before", type=_positive, metavar="SEQ", help="only messages before this seq"
    )

    publish = add(
        "publish",
        "publish messages; each is stored once, however often the call is repeated",
        _examples(
            'yujian publish config deployed \'{"version": "1.2"}\'',
            "echo '{\"ok\": true}' | yujian publish config checked -",
            "yujian publish --lines < messages.jsonl",
        ),
        shape,
    )
    publish.add_argument("type", nargs="?", metavar="TYPE")
    publish.add_argument("event", nargs="?", metavar="EVENT")
    publish.add_argument(
        "data", nargs="?", default="null", metavar="DATA", help="JSON; - reads standard input"
    )
    publish.add_argument("--priority", choices=["high", "normal", "low"], default="normal")
    publish.add_argument("--id", help="by which a repeated message is recognised, for five minutes")
    publish.add_argument(
        "--lines",
        action="store_true",
        help='messages from standard input, one JSON object a line: {"type", "event", "data"}',
    )

    presence = add(
        "presence",
        "print or set what the lab does",
        _examples(
            "yujian presence get",
            "yujian presence set working 'Calibrating the polarimeter'",
            "yujian presence set idle",
        ),
        shape,
    )
    presence.add_argument("what", choices=["get", "set"])
    presence.add_argument("state", nargs="?", choices=["idle", "working", "offline"])
    presence.add_argument("task", nargs="?", metavar="TASK")

    connections = add(
        "connections",
        "list the connections or users of all workers, or close some of them",
        _examples(
            "yujian connections --type status",
            "yujian connections --users --all",
            "yujian connections close 0b7c1c9e-33f0-4d1c-9a55-6a2f0e1d7c11",
            "yujian connections close --user ann --revoked   # its token is no longer good",
        ),
        shape,
    )
    connections.add_argument("what", nargs="?", choices=["list", "close"], default="list")
    connections.add_argument("ids", nargs="*", metavar="ID", help="of connections to close")
    connections.add_argument("--user", metavar="NAME", help="only those of this user")
    connections.add_argument("--type", help="only those that are subscribed to this type")
    connections.add_argument(
        "--protocol", choices=["plain", "socketio", "sse"], help="only those that speak this one"
    )
    connections.add_argument("--users", action="store_true", help="users, by name")
    connections.add_argument(
        "--limit", type=_positive, default=100, metavar="N", help="how many (default: 100)"
    )
    connections.add_argument("--all", action="store_true", help="all that there are")
    connections.add_argument(
        "--revoked", action="store_true", help="close with 4401: the token is no longer good"
    )

    named = add(
        "users",
        "list the users that are subscribed to a type, by name",
        _examples("yujian users status", "yujian users health --all --json | jq -r .user")
        + "\n\nThe service allows it with PRESENCE_NAMES, and with tokens by the claim presence.",
        shape,
    )
    named.add_argument("type", metavar="TYPE")
    named.add_argument(
        "--limit", type=_positive, default=100, metavar="N", help="how many (default: 100)"
    )
    named.add_argument("--all", action="store_true", help="all that there are")

    add(
        "status",
        "print the state of the service",
        _examples("yujian status", "yujian status --json | jq .workers"),
        shape,
    )

    token = add(
        "token",
        "print a client's token, signed with AUTH_SECRET of the environment or .env",
        _examples("yujian token --user ann --ttl 1h --types status,health"),
    )
    token.add_argument("--user", required=True, help="name of the client (sub)")
    token.add_argument(
        "--ttl", type=_duration, default=3600.0, help="90s, 5m, 1h, 7d (default: 1h)"
    )
    token.add_argument("--forever", action="store_true", help="without an end")
    token.add_argument(
        "--types",
        type=_names,
        default=[],
        metavar="A,B",
        help="types that it may read (default: all)",
    )
    token.add_argument(
        "--publish",
        type=_names,
        nargs="?",
        const=[],
        default=None,
        metavar="A,B",
        help="types that it may publish; without a value those that it may read",
    )
    token.add_argument(
        "--presence",
        type=_names,
        nargs="?",
        const=[],
        default=None,
        metavar="A,B",
        help="types whose users it may list; without a value those that it may read",
    )

    many = add(
        "load",
        "connect many clients to your own server on this machine, and print what they see",
        _examples(
            "yujian load http://127.0.0.1:3001 --clients 1000",
            "yujian load http://127.0.0.1:3001 --clients 200 --publish 20 --seconds 30",
        ),
        shape,
    )
    many.add_argument(
        "address", nargs="?", metavar="URL", help="of the server; else as for the others"
    )
    many.add_argument("--clients", type=_positive, default=100, metavar="N", help="(default: 100)")
    many.add_argument(
        "--rate", type=_positive, default=200, metavar="N", help="connects a second (default: 200)"
    )
    many.add_argument(
        "--seconds",
        type=_duration,
        default=10.0,
        metavar="TIME",
        help="how long all stay (default: 10s)",
    )
    many.add_argument(
        "--types",
        type=_names,
        default=["status"],
        metavar="A,B",
        help="subscriptions (default: status)",
    )
    many.add_argument(
        "--publish",
        type=_positive,
        default=0,
        metavar="N",
        help="messages to publish a second, of the first type, to measure how fast they are delivered",
    )
    many.add_argument(
        "--size", type=int, default=0, metavar="BYTES", help="padding of each of these messages"
    )
    return top


def _work(
    arguments: argparse.Namespace, top: argparse.ArgumentParser
) -> Callable[[], Coroutine[Any, Any, Exit]]:
    """What the command line asks for.

    Raises:
        Failure: address or `.env` are wrong.
    """
    command = arguments.command
    url = getattr(arguments, "address", None) or arguments.url
    connection = Connection.of(url, arguments.token, arguments.publish_token)
    as_json = getattr(arguments, "json", False)
    if command == "watch":
        watch = Watch(
            connection,
            arguments.types,
            history=arguments.history,
            count=arguments.count,
            as_json=as_json,
        )
        return watch.run
    if command == "history":
        limit = 0 if arguments.all else arguments.limit
        return lambda: calls.history(
            connection, arguments.type, limit, arguments.before, as_json=as_json
        )
    if command == "publish":
        return _publish(arguments, connection, top)
    if command == "presence":
        return _presence(arguments, connection, top)
    if command == "connections":
        return _connections(arguments, connection, top)
    if command == "users":
        limit = 0 if arguments.all else arguments.limit
        return lambda: calls.users(connection, arguments.type, limit, as_json=as_json)
    if command == "status":
        return lambda: calls.status(connection, as_json=as_json)
    if command == "load":
        plan = Plan(
            arguments.clients,
            arguments.rate,
            arguments.seconds,
            tuple(arguments.types),
            arguments.publish,
            arguments.size,
        )
        return lambda: load(connection, plan, as_json=as_json)

    async def token() -> Exit:
        ttl = None if arguments.forever else arguments.ttl
        claims = {
            name: True if value == [] else value
            for name, value in (
                ("types", arguments.types or None),
                ("publish", arguments.publish),
                ("presence", arguments.presence),
            )
            if value is not None
        }
        return calls.token(connection, arguments.user, ttl, claims)

    return token


def _presence(
    arguments: argparse.Namespace, connection: Connection, top: argparse.ArgumentParser
) -> Callable[[], Coroutine[Any, Any, Exit]]:
    as_json, state = arguments.json, arguments.state
    if arguments.what == "get":
        return lambda: calls.presence_get(connection, as_json=as_json)
    if state is None:
        top.error("presence set needs a state: idle, working or offline")
    return lambda: calls.presence_set(connection, state, arguments.task, as_json=as_json)


def _connections(
    arguments: argparse.Namespace, connection: Connection, top: argparse.ArgumentParser
) -> Callable[[], Coroutine[Any, Any, Exit]]:
    if arguments.what == "close":
        if not arguments.ids and arguments.user is None:
            top.error("connections close needs an ID, or --user")
        return lambda: calls.close_connections(
            connection,
            arguments.ids,
            arguments.user,
            revoked=arguments.revoked,
            as_json=arguments.json,
        )
    if arguments.ids or arguments.revoked:
        top.error("connections list takes no ID, and no --revoked")
    if arguments.users and arguments.user is not None:
        top.error("--users lists all users, and takes no --user")
    limit = 0 if arguments.all else arguments.limit
    return lambda: calls.connections(
        connection,
        arguments.user,
        arguments.type,
        arguments.protocol,
        limit,
        by_user=arguments.users,
        as_json=arguments.json,
    )


def _publish(
    arguments: argparse.Namespace, connection: Connection, top: argparse.ArgumentParser
) -> Callable[[], Coroutine[Any, Any, Exit]]:
    if arguments.lines:
        if arguments.type is not None:
            top.error("publish --lines takes no TYPE: each line names its own")
        return lambda: calls.publish_lines(connection, sys.stdin, as_json=arguments.json)
    if arguments.event is None:
        top.error("publish needs TYPE and EVENT, or --lines")
    text = sys.stdin.read() if arguments.data == "-" else arguments.data
    data = calls.parse_data(text)
    draft = Draft(arguments.type, arguments.event, data, arguments.priority)
    if arguments.id:
        draft = Draft(arguments.type, arguments.event, data, arguments.priority, arguments.id)
    return lambda: calls.publish(connection, draft, as_json=arguments.json)


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit code."""
    top = parser()
    arguments = top.parse_args(argv)
    try:
        return asyncio.run(_work(arguments, top)())
    except Failure as failure:
        print(f"yujian: {failure}", file=sys.stderr)
        return failure.code
    except BrokenPipeError:
        # Whatever read the output has gone, as `head` does; Python would complain at its end.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.OK
    except KeyboardInterrupt:
        return Exit.OK


def main() -> None:
    """Entry point."""
    sys.exit(run())
