"""What the commands of the service have in common: `--help` is the docstring of their module."""

from __future__ import annotations

import argparse


def make_parser(program: str, about: str | None) -> argparse.ArgumentParser:
    """A parser without arguments yet.

    Args:
        program: how it is called, such as `python -m app.config`.
        about: shown by `--help` as it stands.
    """
    return argparse.ArgumentParser(
        prog=program, description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
