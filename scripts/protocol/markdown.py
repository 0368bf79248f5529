"""The protocol as tables of the pages in docs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from app.errors import CloseCode, ErrorCode
from app.protocol.schema import actions, events
from app.protocol.schema.bodies import PUBLISHED
from app.protocol.schema.calls import TABLE as CALLS
from app.protocol.schema.calls import Call
from app.protocol.schema.kinds import (
    AnyJson,
    Boolean,
    Choice,
    Either,
    Field,
    Integer,
    Kind,
    ListOf,
    Nullable,
    Number,
    Struct,
    Text,
    TypeName,
)
from scripts.protocol.notation import Leaf, Notation

_ALSO = {ErrorCode.MAX_CONNECTIONS_EXCEEDED: ", 429"}
_RETRY = {ErrorCode.MAX_CONNECTIONS_EXCEEDED: "if closed with 1013"}
_TOKENS = {
    "public": "",
    "reader": "",
    "publisher": " (token)",
    "publisher or client": " (token)",
}

OBJECTS_HEAD = """\
# Objects

Every object of the protocol, as the service's own tables have it; `make protocol` writes this page. Readers must ignore fields that they do not know:
more may come with any version. The same is in [schema/messages.schema.json](schema/messages.schema.json) (JSON Schema 2020-12), and at a running
service in `/openapi.json` (OpenAPI 3.1) and `/asyncapi.json` (AsyncAPI 3). [docs/PROTOCOL.md](docs/PROTOCOL.md) says when which of them is sent, [docs/HTTP.md](docs/HTTP.md) by
which call.
"""


def fill(page: str, text: str) -> str:
    """A page with its tables made anew.

    Each stands between `<!-- protocol: NAME -->` and `<!-- end -->`.

    Raises:
        KeyError: a mark has a name that is no table's.
    """

    def table(found: re.Match[str]) -> str:
        try:
            return f"{found[1]}\n{_beside(TABLES[found[2]]())}\n{found[3]}"
        except KeyError:
            raise KeyError(f"{page} has no table {found[2]}") from None

    return re.sub(
        r"(<!-- protocol: ([\w -]+) -->)\n.*?(<!-- end -->)", table, text, flags=re.DOTALL
    )


def objects(structs: Iterable[Struct]) -> str:
    """The page of all objects."""
    parts = [OBJECTS_HEAD]
    for struct in sorted(structs, key=lambda each: each.name):
        fields = struct.all_fields()
        if fields:
            parts.append(f"## {struct.name}\n\n{struct.about}\n\n{_fields(fields)}\n")
    return _beside("\n".join(parts))


def _leaf(value: Leaf) -> str:  # noqa: PLR0911 - one case for each kind
    match value:
        case Text():
            if value.most is None:
                return "text"
            return f"text of {value.least} to {value.most} characters"
        case TypeName():
            return "type or `all`" if value.or_all else "type"
        case Integer():
            if value.least is None or value.most is None or value.most > 2**40:
                return "integer"
            return f"{value.least} to {value.most}"
        case Number():
            return "number"
        case Boolean():
            return "`true` or `false`"
        case Choice():
            if set(value.values) <= set(ErrorCode):
                return "a code, see [Errors](docs/PROTOCOL.md#errors)"
            return ", ".join(f"`{each}`" for each in value.values)
        case _:
            return "any JSON"


kind = Notation(
    leaf=_leaf,
    nullable="{}, or null",
    list_of="list of {}".format,
    map_of="object, {} each",
    either=" or ",
    struct=lambda struct: f"[{struct.name}](docs/OBJECTS.md#{struct.name.lower()})",
).of
"""A kind in words."""


def brief(value: Kind) -> str:
    """An object with the names of its fields, as in `{types, history?}`; anything else in words."""
    match value:
        case Struct():
            names = (f"{field.name}{'' if field.required else '?'}" for field in value.all_fields())
            return f"`{{{', '.join(names)}}}`"
        case ListOf():
            return f"list of {brief(value.kind)}"
        case Either():
            return " or ".join(brief(each) for each in value.kinds)
        case _:
            return kind(value)


def _fields(fields: Iterable[Field]) -> str:
    rows = ["| field | | |", "|---|---|---|"]
    for field in fields:
        value = (
            field.kind.kind
            if isinstance(field.kind, Nullable) and not field.required
            else field.kind
        )
        name = f"`{field.name}`" + ("" if field.required else "?")
        rows.append(f"| {name} | {kind(value)} | {field.about} |")
    return "\n".join(rows)


def _action(name: str) -> str:
    action = actions.ACTIONS[name]
    payload = brief(action.payload) if isinstance(action.payload, Struct) else "anything"
    reply = "nothing"
    if action.reply is not None:
        reply = f"`{action.reply}` {brief(events.EVENTS[action.reply].data)}"
    text = f"{payload} → {reply}. {action.about}"
    if isinstance(action.payload, Struct):
        text += f"\n\n{_fields(action.payload.fields)}"
    return text


def _events() -> str:
    rows = ["| event | `type` | data | |", "|---|---|---|---|"]
    for event in events.TABLE:
        data = event.data
        shown = kind(data) if isinstance(data, Struct) else "text"
        type = "of the messages" if event.type == "any" else f"`{event.type}`"
        if event.is_bare:
            type = "none"
        rows.append(f"| `{event.name}` | {type} | {shown} | {event.about} |")
    rows.append("| whatever publishers name | of the messages | theirs | messages of a stream |")
    return "\n".join(rows)


def _errors(*, http_only: bool) -> str:
    rows = ["| code | HTTP | retry | what to do |", "|---|---|---|---|"]
    for code in ErrorCode:
        if code.is_http_only == http_only:
            retry = _RETRY.get(code, "yes" if code.retryable else "no")
            status = f"{code.status}{_ALSO.get(code, '')}"
            rows.append(f"| `{code}` | {status} | {retry} | {_linked(code.advice)} |")
    return "\n".join(rows)


def _closes() -> str:
    rows = ["| code | reason | reconnect? |", "|---|---|---|"]
    rows += [
        f"| {code.value} | {code.why} | {code.advice} |"
        for code in CloseCode
        if code is not CloseCode.NORMAL
    ]
    return "\n".join(rows)


def _calls() -> str:
    rows = ["| call | answer |", "|---|---|"]
    rows += [f"| {_call(call)} | {_answer(call)} |" for call in CALLS]
    return "\n".join(rows)


def _call(call: Call) -> str:
    query = "&".join(f"{each.name}=" for each in call.parameters if each.place == "query")
    return f"`{call.method} {call.path}{'?' if query else ''}{query}`{_TOKENS[call.reader]}"


def _answer(call: Call) -> str:
    parts = [call.about]
    if call.body is not None:
        parts.append(f"body: {_body(call.body)}")
    bodies = [_body(each.body) for each in call.answers if each.body is not None]
    named = [body for body in dict.fromkeys(bodies) if "[" in body]
    if named:
        parts.append(f"answer: {' or '.join(named)}")
    return "; ".join(parts) + (f". {call.details}" if call.details else "")


def _body(value: Kind) -> str:
    match value:
        case Struct() if not value.all_fields():
            return "JSON"
        case ListOf(kind=AnyJson()):
            return "a list of such"
        case ListOf(kind=Either(kinds=kinds)):
            return f"list of {' and '.join(map(kind, kinds))}"
        case Either():
            return " or ".join(_body(each) for each in value.kinds)
        case _:
            return kind(value)


def _beside(text: str) -> str:
    """With links as a page in docs has them, in place of those from the root."""
    return text.replace("docs/", "")


def _linked(advice: str) -> str:
    return re.sub(r"docs/(\w+\.md)", r"[docs/\1](docs/\1)", advice)


TABLES: Mapping[str, Callable[[], str]] = {
    "events": _events,
    "errors": lambda: _errors(http_only=False),
    "errors of HTTP": lambda: _errors(http_only=True),
    "close codes": _closes,
    "calls": _calls,
    "published message": lambda: _fields(PUBLISHED.fields),
    **{f"action {name}": lambda name=name: _action(name) for name in actions.ACTIONS},  # type: ignore[misc]
}
"""What can stand between marks, by name."""
