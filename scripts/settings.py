"""`python -m scripts.settings`: writes the table of docs/SETTINGS.md from the one in app/config.py."""

from __future__ import annotations

import re
from pathlib import Path

from app import config

PAGE = Path(__file__).resolve().parents[1] / "docs/SETTINGS.md"


def fill(text: str) -> str:
    """The page with its table made anew, between `<!-- settings -->` and `<!-- end -->`."""
    table = f"<!-- settings -->\n{config.markdown()}\n<!-- end -->"
    return re.sub(r"<!-- settings -->\n.*\n<!-- end -->", lambda _: table, text, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text()))
