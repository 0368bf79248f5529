"""The commands of `yujian`: what each of them takes, and what it does."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Coroutine
from typing import Any, Protocol

from yujian_realtime.command import calls
from yujian_realtime.command.exits import MEANINGS, Exit
from yujian_realtime.command.load import Plan, load
from yujian_realtime.command.settings import Connection, seconds
from yujian_realtime.command.watch import Watch
from yujian_realtime.publisher import Draft

DEFAULT_TYPES = ("status", "stats", "health")

Work = Coroutine[Any, Any, Exit]
"""What a command does once its arguments are known to fit."""


class Misused(Exception):
    """Arguments do not fit each other; its words say what is needed."""


class Begin(Protocol):
    """Checks the arguments of a command, and begins it."""

    def __call__(self, arguments: argparse.Namespace, connection: Connection, /) -> Work:
        """Begin.

        Raises:
            Misused: the arguments do not fit each other.
            Failure: a value cannot be used.
        """


class Commands:
    """The commands as they are added to a parser.

    Args:
        top: the parser.
    """

    def __init__(self, top: argparse.ArgumentParser) -> None:
        self._commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
        self._common = argparse.ArgumentParser(add_help=False)
        where = self._common.add_argument_group("which service")
        where.add_argument("--url", metavar="URL", help="http(s)://host:port of the service")
        where.add_argument("--token", help="a reader's JWT, where the service asks for one")
        where.add_argument("--publish-token", metavar="TOKEN", help="for what writes")
        self._common.set_defaults(address=None)
        self._shape = argparse.ArgumentParser(add_help=False)
        self._shape.add_argument(
            "--json", action="store_true", help="JSON, one value a line, for programs"
        )

    def add(
        self, name: str, help: str, begin: Begin, *examples: str, note: str = "", json: bool = True
    ) -> argparse.ArgumentParser:
        """Add a command; returns the parser of its arguments.

        Args:
            name: of the command.
            help: what it does, in one line.
            begin: does it.
            examples: command lines.
            note: a sentence below them.
            json: whether it can print JSON.
        """
        lines = "examples:\n" + "\n".join(f"  {line}" for line in examples)
        made: argparse.ArgumentParser = self._commands.add_parser(
            name,
            help=help,
            description=help[0].upper() + help[1:] + ".",
            epilog="\n\n".join([lines, exits(), *([note] if note else [])]),
            parents=[self._common, *([self._shape] if json else [])],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        made.set_defaults(begin=begin)
        return made


def exits() -> str:
    """The exit codes, for the end of a help text."""
    lines = [f"  {int(code)}  {meaning}" for code, meaning in MEANINGS.items()]
    return "exit codes:\n" + "\n".join(lines)


def add_all(commands: Commands) -> None:
    """Add every command, in the order of the help."""
    for add in (
        _add_watch,
        _add_history,
        _add_publish,
        _add_presence,
        _add_connections,
        _add_users,
        _add_status,
        _add_token,
        _add_load,
    ):
        add(commands)


# Values of arguments.


def _duration(text: str) -> float:
    try:
        return seconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def _standard_input() -> str:
    if sys.stdin is None:  # as after `<&-`
        raise Misused("standard input is closed")
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise Misused(f"standard input is not in UTF-8: {error}") from None


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _add_limit(command: argparse.ArgumentParser, default: int, all: str) -> None:
    command.add_argument(
        "--limit",
        type=_positive,
        default=default,
        metavar="N",
        help=f"how many (default: {default})",
    )
    command.add_argument("--all", action="store_true", help=all)


def _limit(arguments: argparse.Namespace) -> int:
    """How many are wanted; 0: all."""
    return 0 if arguments.all else int(arguments.limit)


# Reading.


def _add_watch(commands: Commands) -> None:
    watch = commands.add(
        "watch",
        "follow messages as they come: a table on a terminal, lines elsewhere",
        _watch,
        "yujian watch status health",
        "yujian watch all --json | jq .data",
        "yujian watch config --history 0 --count 1   # wait for the next one",
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


def _watch(arguments: argparse.Namespace, connection: Connection) -> Work:
    return Watch(
        connection,
        arguments.types,
        history=arguments.history,
        count=arguments.count,
        as_json=arguments.json,
    ).run()


def _add_history(commands: Commands) -> None:
    history = commands.add(
        "history",
        "print messages of the past, the newest last",
        _history,
        "yujian history health --limit 10",
        "yujian history status --all --json",
    )
    history.add_argument("type", metavar="TYPE")
    _add_limit(history, 20, "all that the service keeps")
    history.add_argument(
        "--before", type=_positive, metavar="SEQ", help="only messages before this seq"
    )


def _history(arguments: argparse.Namespace, connection: Connection) -> Work:
    return calls.history(
        connection, arguments.type, _limit(arguments), arguments.before, as_json=arguments.json
    )


# Writing.


def _add_publish(commands: Commands) -> None:
    publish = commands.add(
        "publish",
        "publish messages; each is stored once, however often the call is repeated",
        _publish,
        'yujian publish config deployed \'{"version": "1.2"}\'',
        "echo '{\"ok\": true}' | yujian publish config checked -",
        "yujian publish --lines < messages.jsonl",
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


def _publish(arguments: argparse.Namespace, connection: Connection) -> Work:
    if arguments.lines:
        if arguments.type is not None:
            raise Misused("publish --lines takes no TYPE: each line names its own")
        lines = io.StringIO(_standard_input())
        return calls.publish_lines(connection, lines, as_json=arguments.json)
    if arguments.event is None:
        raise Misused("publish needs TYPE and EVENT, or --lines")
    text = _standard_input() if arguments.data == "-" else arguments.data
    data = calls.parse_data(text)
    draft = Draft(arguments.type, arguments.event, data, arguments.priority)
    if arguments.id:
        draft = Draft(arguments.type, arguments.event, data, arguments.priority, arguments.id)
    return calls.publish(connection, draft, as_json=arguments.json)


def _add_presence(commands: Commands) -> None:
    presence = commands.add(
        "presence",
        "print or set what the lab does",
        _presence,
        "yujian presence get",
        "yujian presence set working 'Calibrating the polarimeter'",
        "yujian presence set idle",
    )
    presence.add_argument("what", choices=["get", "set"])
    presence.add_argument("state", nargs="?", choices=["idle", "working", "offline"])
    presence.add_argument("task", nargs="?", metavar="TASK")


def _presence(arguments: argparse.Namespace, connection: Connection) -> Work:
    if arguments.what == "get":
        return calls.presence_get(connection, as_json=arguments.json)
    if arguments.state is None:
        raise Misused("presence set needs a state: idle, working or offline")
    return calls.presence_set(connection, arguments.state, arguments.task, as_json=arguments.json)


# Operating.


def _add_connections(commands: Commands) -> None:
    connections = commands.add(
        "connections",
        "list the connections or users of all workers, or close some of them",
        _connections,
        "yujian connections --type status",
        "yujian connections --users --all",
        "yujian connections close 0b7c1c9e-33f0-4d1c-9a55-6a2f0e1d7c11",
        "yujian connections close --user ann --revoked   # its token is no longer good",
    )
    connections.add_argument("what", nargs="?", choices=["list", "close"], default="list")
    connections.add_argument("ids", nargs="*", metavar="ID", help="of connections to close")
    connections.add_argument("--user", metavar="NAME", help="only those of this user")
    connections.add_argument("--type", help="only those that are subscribed to this type")
    connections.add_argument(
        "--protocol", choices=["plain", "socketio", "sse"], help="only those that speak this one"
    )
    connections.add_argument("--users", action="store_true", help="users, by name")
    _add_limit(connections, 100, "all that there are")
    connections.add_argument(
        "--revoked", action="store_true", help="close with 4401: the token is no longer good"
    )


def _connections(arguments: argparse.Namespace, connection: Connection) -> Work:
    if arguments.what == "close":
        if not arguments.ids and arguments.user is None:
            raise Misused("connections close needs an ID, or --user")
        return calls.close_connections(
            connection,
            arguments.ids,
            arguments.user,
            revoked=arguments.revoked,
            as_json=arguments.json,
        )
    if arguments.ids or arguments.revoked:
        raise Misused("connections list takes no ID, and no --revoked")
    if arguments.users and arguments.user is not None:
        raise Misused("--users lists all users, and takes no --user")
    return calls.connections(
        connection,
        arguments.user,
        arguments.type,
        arguments.protocol,
        _limit(arguments),
        by_user=arguments.users,
        as_json=arguments.json,
    )


def _add_users(commands: Commands) -> None:
    users = commands.add(
        "users",
        "list the users that are subscribed to a type, by name",
        _users,
        "yujian users status",
        "yujian users health --all --json | jq -r .user",
        note="The service allows it with PRESENCE_NAMES, and with tokens by the claim presence.",
    )
    users.add_argument("type", metavar="TYPE")
    _add_limit(users, 100, "all that there are")


def _users(arguments: argparse.Namespace, connection: Connection) -> Work:
    return calls.users(connection, arguments.type, _limit(arguments), as_json=arguments.json)


def _add_status(commands: Commands) -> None:
    commands.add(
        "status",
        "print the state of the service",
        _status,
        "yujian status",
        "yujian status --json | jq .workers",
    )


def _status(arguments: argparse.Namespace, connection: Connection) -> Work:
    return calls.status(connection, as_json=arguments.json)


def _add_token(commands: Commands) -> None:
    token = commands.add(
        "token",
        "print a client's token, signed with AUTH_SECRET of the environment or .env",
        _token,
        "yujian token --user ann --ttl 1h --types status,health",
        json=False,
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
    for name, meaning in (
        ("--publish", "types that it may publish"),
        ("--presence", "types whose users it may list"),
    ):
        token.add_argument(
            name,
            type=_names,
            nargs="?",
            const=[],
            default=None,
            metavar="A,B",
            help=f"{meaning}; without a value those that it may read",
        )


async def _token(arguments: argparse.Namespace, connection: Connection) -> Exit:
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


def _add_load(commands: Commands) -> None:
    many = commands.add(
        "load",
        "connect many clients to your own server on this machine, and print what they see",
        _load,
        "yujian load http://127.0.0.1:3001 --clients 1000",
        "yujian load http://127.0.0.1:3001 --clients 200 --publish 20 --seconds 30",
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


def _load(arguments: argparse.Namespace, connection: Connection) -> Work:
    plan = Plan(
        arguments.clients,
        arguments.rate,
        arguments.seconds,
        tuple(arguments.types),
        arguments.publish,
        arguments.size,
    )
    return load(connection, plan, as_json=arguments.json)
