"""The pages for users name every code and action, and their links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from app import __version__
from app.errors import CloseCode, ErrorCode
from app.protocol.requests import ACTIONS

ROOT = Path(__file__).parents[2]
PAGES = [
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "SCALING.md",
    "docs/DEPLOYMENT.md",
    "CONTRIBUTING.md",
    "docs/PROTOCOL.md",
    "docs/RELEASING.md",
    "docs/SETTINGS.md",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs/design").glob("*.md")),
]


@pytest.mark.parametrize("page", ["README.md", "docs/PROTOCOL.md"])
def test_every_code_is_explained(page: str) -> None:
    text = (ROOT / page).read_text()
    assert [code for code in ErrorCode if f"`{code}`" not in text] == []
    rows = {
        int(code)
        for row in re.findall(r"^\| (\d{4}[\d, ]*) \|", text, re.MULTILINE)
        for code in row.split(",")
    }
    assert rows == set(CloseCode) - {CloseCode.NORMAL}


@pytest.mark.parametrize(
    ("page", "mark"), [("README.md", "| `{}` |"), ("docs/PROTOCOL.md", "### {}\n")]
)
def test_every_action_is_explained(page: str, mark: str) -> None:
    text = (ROOT / page).read_text()
    assert [action for action in sorted(ACTIONS) if mark.format(action) not in text] == []


def test_the_final_close_codes_are_told() -> None:
    text = (ROOT / "docs/PROTOCOL.md").read_text()
    table = re.findall(r"^\| (\d{4}[\d, ]*) \| .* \| (\w+).* \|$", text, re.MULTILINE)
    stay_away = {int(code) for codes, back in table if back == "no" for code in codes.split(",")}
    assert stay_away == {code for code in CloseCode if code.is_final}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        other = path.parent / name if name else path
        assert other.exists(), target
        if anchor:
            title = anchor.replace("-", " ")
            assert re.search(rf"^#+ {title}$", other.read_text(), re.MULTILINE | re.IGNORECASE), (
                target
            )


def test_modules_that_the_architecture_names_exist() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    named = re.findall(r"`((?:app|workers|tests|benchmarks)/[\w/.]*)`", text)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_changelog_ends_with_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d$", text, re.MULTILINE)
    assert released[0] == __version__
