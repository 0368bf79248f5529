"""`python -m scripts.protocol`: writes the files; with `--check` it only compares them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from app.protocol.schema import asyncapi, payloads
from app.protocol.schema.calls import TABLE as CALLS
from app.protocol.schema.kinds import Struct, structs
from app.setting_values import BUILT_IN_TYPES
from scripts.protocol import markdown, python, typescript

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("docs/PROTOCOL.md", "docs/HTTP.md")
"""With tables between marks."""


def all_structs() -> list[Struct]:
    """Every object that travels."""
    bodies = [kind for call in CALLS for kind in (call.body, *(each.body for each in call.answers))]
    found = structs(*asyncapi.used(), payloads.ERROR, *bodies)
    return [struct for struct in found if struct.all_fields()]


def files(root: Path = ROOT) -> Mapping[str, str]:
    """What the files should hold, by name."""
    made = all_structs()
    schemas = json.dumps(asyncapi.json_schemas(BUILT_IN_TYPES), indent=1, ensure_ascii=False)
    return {
        "clients/js/src/protocol.ts": typescript.write(made),
        "clients/python/src/yujian_realtime/protocol.py": python.write(made),
        "docs/schema/messages.schema.json": schemas + "\n",
        "docs/OBJECTS.md": markdown.objects(made),
        **{page: markdown.fill(page, (root / page).read_text()) for page in PAGES},
    }


def main(arguments: list[str]) -> int:
    """Write the files that differ, or only name them."""
    differing = 0
    for name, text in files().items():
        path = ROOT / name
        if path.exists() and path.read_text() == text:
            continue
        differing += 1
        print(name)
        if "--check" not in arguments:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return 1 if differing and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
