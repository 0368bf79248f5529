"""Files that are answered from memory, compressed for clients that take that, or with 304."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from aiohttp import web

from app.http.header_lists import split_list

ENCODINGS = (("br", ".br"), ("gzip", ".gz"))
"""In the order of preference, with the endings of their files."""


@dataclass(frozen=True, slots=True)
class File:
    """One file and its compressed forms."""

    type: str
    """Content-Type."""
    bodies: Mapping[str, bytes]
    """By encoding; `identity` is always there."""
    tags: Mapping[str, str]
    """Entity tags by encoding."""

    @classmethod
    def of(cls, type: str, bodies: Mapping[str, bytes]) -> Self:
        """A file with these bodies, by encoding."""
        digest = hashlib.blake2b(bodies["identity"], digest_size=12).hexdigest()
        return cls(type, bodies, {encoding: f'"{digest}-{encoding}"' for encoding in bodies})

    @classmethod
    def compressed(cls, type: str, body: bytes) -> Self:
        """A file with this body, which is compressed now."""
        return cls.of(type, {"identity": body, "gzip": gzip.compress(body, 9, mtime=0)})

    def answer(
        self, request: web.Request, headers: Mapping[str, str], vary: str = "Accept-Encoding"
    ) -> web.Response:
        """Answer with the file, or with 304 where the client has it.

        Args:
            request: of the client.
            headers: of the answer.
            vary: request headers that the answer depends on.
        """
        encoding = _choose(request.headers.get("Accept-Encoding", ""), self.bodies)
        tag = self.tags[encoding]
        sent = {**headers, "ETag": tag, "Vary": vary}
        known = request.headers.get("If-None-Match", "")
        if known.strip() == "*" or tag in split_list(known):
            return web.Response(status=304, headers=sent)
        sent["Content-Type"] = self.type
        if encoding != "identity":
            sent["Content-Encoding"] = encoding
        return web.Response(body=self.bodies[encoding], headers=sent)


def weights(header: str) -> dict[str, float]:
    """The choices of an Accept header with their weights, 0 to 1."""
    found: dict[str, float] = {}
    for item in split_list(header.lower()):
        name, *parameters = split_list(item, ";")
        weight = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    weight = min(max(float(parameter[2:]), 0.0), 1.0)
                except ValueError:
                    weight = 0.0
        if name:
            found[name] = weight
    return found


def _choose(accepted: str, bodies: Mapping[str, bytes]) -> str:
    """The best encoding that is there and that the client takes (RFC 9110 section 12.5.3)."""
    wanted = weights(accepted)
    for encoding, _ in ENCODINGS:
        if encoding in bodies and wanted.get(encoding, wanted.get("*", 0.0)) > 0:
            return encoding
    return "identity"
