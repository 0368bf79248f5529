"""The pages for users name every code and action, and their links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from app import __version__
from app.errors import CloseCode, ErrorCode
from app.protocol.schema.actions import ACTIONS
from app.protocol.schema.kinds import Kind, Struct

ROOT = Path(__file__).parents[2]
PAGES = [
    "README.md",
    "README.zh-CN.md",
    "clients/js/README.md",
    "clients/python/README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")),
]


@pytest.mark.parametrize("page", ["README.md", "README.zh-CN.md", "docs/PROTOCOL.md"])
def test_every_code_is_explained(page: str) -> None:
    text = (ROOT / page).read_text()
    codes = [code for code in ErrorCode if "PROTOCOL" in page or not code.is_http_only]
    assert [code for code in codes if f"`{code}`" not in text] == []
    rows = {
        int(code)
        for row in re.findall(r"^\| (\d{4}[\d, ]*) \|", text, re.MULTILINE)
        for code in row.split(",")
    }
    assert rows == set(CloseCode) - {CloseCode.NORMAL}


def test_the_table_of_error_codes_is_true() -> None:
    """Each code once, HTTP's apart, with its status and whether a retry may succeed."""
    text = (ROOT / "docs/PROTOCOL.md").read_text()
    rows = re.findall(r"^\| `([A-Z_]+)` \| ([\d, ]+) \| ([^|]+) \| .+ \|$", text, re.MULTILINE)
    assert sorted(code for code, _, _ in rows) == sorted(ErrorCode)
    http_only = text.index("These codes occur in HTTP answers only")
    for name, statuses, retry in rows:
        code = ErrorCode(name)
        assert int(statuses.split(",")[0]) == code.status, code
        assert (text.index(f"| `{code}` |") > http_only) == code.is_http_only, code
        if code is not ErrorCode.MAX_CONNECTIONS_EXCEEDED:  # depends on the limit that is reached
            assert retry == ("yes" if code.retryable else "no"), code


@pytest.mark.parametrize(
    ("page", "mark"),
    [
        ("README.md", "| `{}` |"),
        ("README.zh-CN.md", "| `{}` |"),
        ("docs/PROTOCOL.md", "### {}\n"),
    ],
)
def test_every_action_is_explained(page: str, mark: str) -> None:
    text = (ROOT / page).read_text()
    assert [action for action in sorted(ACTIONS) if mark.format(action) not in text] == []


def brief(payload: Kind) -> str:
    """An object with the names of its fields."""
    if not isinstance(payload, Struct):
        return "anything"
    names = (f"{field.name}{'' if field.required else '?'}" for field in payload.fields)
    return f"`{{{', '.join(names)}}}`"


def test_the_actions_of_the_readme_are_those_of_the_protocol() -> None:
    rows = [
        f"| `{action.name}` | {brief(action.payload)} | {f'`{action.reply}`' if action.reply else 'none'} |"
        for action in ACTIONS.values()
    ]
    assert "\n".join(rows) in (ROOT / "README.md").read_text()


def test_tests_that_a_page_names_are_there() -> None:
    tests = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "tests/containers/engine").glob("*")]
    there = "\n".join(f"{path.name}\n{path.read_text()}" for path in tests if path.is_file())
    for page in PAGES:
        if page != "CHANGELOG.md":  # tests of past versions
            named = re.findall(r"\btest_\w+", (ROOT / page).read_text())
            assert [name for name in named if not re.search(rf"\b{name}\b", there)] == [], page


def test_the_final_close_codes_are_listed() -> None:
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
            title = anchor.replace("-", "[ -]")
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


def test_entries_of_the_changelog_are_short() -> None:
    """What changed for its reader, in a few lines; pages that it links to have the rest."""
    text = (ROOT / "CHANGELOG.md").read_text()
    entries = re.findall(r"^- .*(?:\n  .*)*", text, re.MULTILINE)
    assert len(entries) == text.count("\n- ")
    assert [entry for entry in entries if len(entry) > 500] == []


def test_both_readmes_have_the_same_commands_and_links() -> None:
    english, chinese = ((ROOT / name).read_text() for name in ("README.md", "README.zh-CN.md"))

    def blocks(text: str) -> list[str]:
        return re.findall(r"^```.*?^```", text, re.MULTILINE | re.DOTALL)

    def targets(text: str) -> list[str]:
        found = re.findall(r"\]\(([^)\s]+)\)", text)
        return [target for target in found if not target.startswith("README")]

    assert len(blocks(english)) == 5
    assert blocks(english) == blocks(chinese)
    assert targets(english) == targets(chinese)
    assert max(text.count("\n") for text in (english, chinese)) <= 120


def test_the_terms_of_the_glossary_are_those_of_the_code() -> None:
    """Each stands in the file that the page names, or the names behind that do."""
    rows = re.findall(
        r"^\| ([\w -]+) \| .+ \| (`.+`) \|$",
        (ROOT / "docs/design/glossary.md").read_text(),
        re.MULTILINE,
    )
    assert [word for word, _ in rows] == sorted(word for word, _ in rows)
    missing = []
    for word, place in rows:
        files, _, names = place.partition(": ")
        wanted = re.findall(r"`(\w+)`", names) or [re.sub("[ -]", "[ _-]?", word)]
        for name in re.findall("`([^`]+)`", files):
            path = ROOT / name
            text = "".join(
                each.read_text() for each in (path.rglob("*.py") if path.is_dir() else [path])
            )
            missing += [
                (word, name, one) for one in wanted if not re.search(one, text, re.IGNORECASE)
            ]
    assert len(rows) > 30
    assert missing == []


def test_every_page_of_docs_can_be_found() -> None:
    """From the README, or from a page that it links to."""
    linked: set[str] = set()
    for page in PAGES:
        path = ROOT / page
        for target in re.findall(r"\]\(([^)\s#]+)", path.read_text()):
            if "://" not in target:
                linked.add(str((path.parent / target).resolve().relative_to(ROOT)))
    pages = {str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")}
    assert pages - linked == set()


def test_every_source_of_the_comparison_is_named_and_used() -> None:
    text = (ROOT / "docs/COMPARISON.md").read_text()
    table, _, sources = text.partition("## Sources")
    used = {int(number) for number in re.findall(r"\[(\d+)\]", table)}
    named = {int(number) for number in re.findall(r"^(\d+)\. .*<https://", sources, re.MULTILINE)}
    assert used == named


DESIGN = ["ARCHITECTURE.md", "CONTRIBUTING.md", *(page for page in PAGES if "/design/" in page)]
FOLDERS = (
    "app",
    "workers",
    "tests",
    "frontend/src",
    "clients",
    "scripts",
    "monitoring",
    "deploy",
    "docs",
)


@pytest.fixture(scope="module")
def code() -> str:
    """All of the service."""
    folders = (ROOT / "app", ROOT / "workers")
    return "\n".join(path.read_text() for folder in folders for path in folder.rglob("*.py"))


@pytest.fixture(scope="module")
def paths() -> list[str]:
    """Where files are, with a slash in front."""
    found = [
        *ROOT.iterdir(),
        *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.*")),
    ]
    return [f"/{path.relative_to(ROOT)}" for path in found]


@pytest.mark.parametrize("page", DESIGN)
def test_files_that_a_page_names_are_there(page: str, paths: list[str]) -> None:
    """With as many of their folders as the page gives."""
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    names = set(re.findall(r"`([\w./-]+\.(?:py|sh|yml|md|ts|lock|txt|toml))`", text))
    names.discard("DATA_DIR/leader.lock")
    assert {name for name in names if not any(path.endswith(f"/{name}") for path in paths)} == set()


@pytest.mark.parametrize("page", DESIGN)
def test_names_of_the_code_that_a_page_uses_are_there(page: str, code: str) -> None:
    """Classes with one of their methods or attributes: `Hub.broadcast`."""
    text = (ROOT / page).read_text()
    for owner, name in re.findall(r"`([A-Z]\w*[a-z]\w*)\.(\w+)(?:\(\))?`", text):
        assert re.search(rf"\bclass {owner}\b", code), f"{owner}.{name}"
        defined = rf"def {name}\b|self\.{name}\b|^    {name}\b"
        assert re.search(defined, code, re.MULTILINE), f"{owner}.{name}"


@pytest.mark.parametrize("folder", ["app", "app/sessions", "workers"])
def test_the_architecture_has_a_place_for_every_module(folder: str) -> None:
    names = {path.name for path in (ROOT / folder).glob("*.py")} - {"__init__.py"}
    text = (ROOT / "ARCHITECTURE.md").read_text()
    assert {name for name in names if not re.search(rf"[`/]{re.escape(name)}`", text)} == set()
