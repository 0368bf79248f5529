"""Makes a page of the runbook, for the links in alerts: `python -m scripts.runbook`; `make page` does it.

It reads docs/operations/RUNBOOK.md and writes frontend/public/runbook.html. It understands what the
runbook uses of Markdown: headings, paragraphs, lists, code, bold text and links. Links to files of the
repository become plain text, since the page stands alone.
"""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "docs/operations/RUNBOOK.md"
PAGE = ROOT / "frontend/public/runbook.html"

_HEAD = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="robots" content="noindex">
<title>{title}</title>
<link rel="stylesheet" href="/runbook.css">
</head>
<body>
"""
_END = "</body>\n</html>\n"
_INLINE = re.compile(
    r"`(?P<code>[^`]+)`|\*\*(?P<bold>[^*]+)\*\*|\[(?P<text>[^\]]+)\]\((?P<target>[^)\s]+)\)|<(?P<url>https?:[^>]+)>"
)


def anchor(title: str) -> str:
    """The fragment that leads to a heading."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def _inline(text: str) -> str:
    """A line's text as HTML."""
    parts, at = [], 0
    for found in _INLINE.finditer(text):
        parts += [html.escape(text[at : found.start()], quote=False), _element(found)]
        at = found.end()
    return "".join(parts) + html.escape(text[at:], quote=False)


def _element(found: re.Match[str]) -> str:
    if found["code"] is not None:
        return f"<code>{html.escape(found['code'], quote=False)}</code>"
    if found["bold"] is not None:
        return f"<strong>{_inline(found['bold'])}</strong>"
    target = found["target"] or found["url"]
    text = _inline(found["text"]) if found["text"] else html.escape(target)
    if target.startswith(("#", "http:", "https:")):
        return f'<a href="{html.escape(target)}">{text}</a>'
    return text


def _blocks(markdown: str) -> Iterator[str]:
    """The page's elements in their order."""
    lines = iter(markdown.splitlines())
    kind, held = "", list[str]()

    def end() -> Iterator[str]:
        nonlocal kind
        if kind == "p":
            yield f"<p>{_inline(' '.join(held))}</p>"
        elif kind == "ul":
            yield "<ul>\n" + "\n".join(f"<li>{_inline(item)}</li>" for item in held) + "\n</ul>"
        kind = ""
        held.clear()

    for line in lines:
        heading = re.fullmatch(r"(#+) (.*)", line)
        if line.startswith("```"):
            yield from end()
            code = "\n".join(iter(lambda: next(lines), "```"))
            yield f"<pre><code>{html.escape(code, quote=False)}</code></pre>"
        elif heading:
            yield from end()
            level, title = len(heading[1]), heading[2]
            yield f'<h{level} id="{anchor(title)}">{_inline(title)}</h{level}>'
        elif not line.strip():
            yield from end()
        elif line.startswith("- "):
            if kind != "ul":
                yield from end()
            kind = "ul"
            held.append(line[2:])
        elif kind == "ul":
            held[-1] += " " + line.strip()
        else:
            kind = "p"
            held.append(line.strip())
    yield from end()


def page(markdown: str) -> str:
    """The runbook as a page."""
    title = markdown.partition("\n")[0].lstrip("# ")
    return _HEAD.format(title=html.escape(title)) + "\n".join(_blocks(markdown)) + "\n" + _END


def main() -> int:
    """Write the page; returns the exit code."""
    PAGE.write_text(page(SOURCE.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
