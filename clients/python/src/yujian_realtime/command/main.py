"""The command line of `yujian`: its parser, and the exit code."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
from collections.abc import Sequence

from yujian_realtime import __version__
from yujian_realtime.command.commands import Commands, Misused, add_all, exits
from yujian_realtime.command.exits import Exit, Failure
from yujian_realtime.command.settings import Connection

_ABOUT = """\
Watch, publish and operate a Yujian Presence from a terminal.

The address comes from --url, YUJIAN_URL, or BIND in .env of this directory; else it is http://127.0.0.1:3001.
A reader's token comes from --token or YUJIAN_TOKEN; with AUTH_SECRET in .env one is signed for this command.
The publish token comes from --publish-token or PUBLISH_TOKEN. The environment wins over .env.
"""


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    top = argparse.ArgumentParser(
        prog="yujian",
        description=_ABOUT,
        epilog=exits(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    add_all(Commands(top))
    return top


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit code."""
    top = parser()
    arguments = top.parse_args(argv)
    if any("\ud800" <= char <= "\udfff" for char in "".join(argv or sys.argv[1:])):
        top.error("an argument is not in UTF-8")
    if sys.stdout is None:  # as after `>&-`
        print("yujian: the output cannot be written: standard output is closed", file=sys.stderr)
        return Exit.REFUSED
    try:
        url = arguments.address or arguments.url
        connection = Connection.of(url, arguments.token, arguments.publish_token)
        exit_code: Exit = asyncio.run(arguments.begin(arguments, connection))
    except Misused as misused:
        top.error(str(misused))
    except Failure as failure:
        print(f"yujian: {failure}", file=sys.stderr)
        return failure.code
    except BrokenPipeError:
        # Whatever read the output has gone, as `head` does.
        _drop_output()
        return Exit.OK
    except OSError as error:
        # What fails in the network is a `Failure`.
        _drop_output()
        print(f"yujian: the output cannot be written: {error}", file=sys.stderr)
        return Exit.REFUSED
    except KeyboardInterrupt:
        return Exit.OK
    return exit_code


def _drop_output() -> None:
    """Let what is not written yet go nowhere: Python would complain at its end."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> None:
    """Entry point."""
    sys.exit(run())
