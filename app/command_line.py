"""What the commands of the service have in common: `--help` is the docstring of their module."""

from __future__ import annotations

import argparse
import signal


def make_parser(program: str, about: str | None) -> argparse.ArgumentParser:
    """A parser without arguments yet.

    Args:
        program: how it is called, such as `python -m app.config`.
        about: shown by `--help` as it stands.
    """
    return argparse.ArgumentParser(
        prog=program, description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def end_by_interrupts() -> None:
    """Let TERM, and a terminal that is closed, raise KeyboardInterrupt as ^C does.

    So what was begun is taken back, and nothing is left behind.
    """
    for one in (signal.SIGHUP, signal.SIGTERM):
        if signal.getsignal(one) == signal.SIG_DFL:  # nohup ignores it
            signal.signal(one, signal.default_int_handler)
