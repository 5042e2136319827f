"""Addresses of Qdrant servers: `http(s)://host:port/?prefix=project` and `grpc(s)://…`.

A prefix keeps the collections of several projects on one server apart.
"""

import re
from dataclasses import dataclass
from typing import Self
from urllib.parse import parse_qsl, urlsplit, urlunsplit

SEPARATOR = "."
"""Character between prefix and collection. Neither may contain it."""


@dataclass(frozen=True)
class Address:
    """A server, and the prefix of the collections on it."""

    url: str  # without the prefix
    scheme: str  # "http", "https", "grpc" or "grpcs"
    host: str
    port: int | None
    prefix: str = ""

    @classmethod
    def parse(cls, url: str) -> Self:
        """Parse the URL of an index on a server.

        Raises:
            ValueError: The URL is malformed, or it contains a user or password.

        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https", "grpc", "grpcs") or not parts.hostname:
            raise ValueError(
                f"index {url!r} is not understood; give http(s)://host:port, grpc(s)://host:port, "
                "edge:folder or :memory:"
            )
        if "@" in parts.netloc:
            raise ValueError(
                "the index URL contains a user or password; set QDRANT_API_KEY instead, because "
                "URLs are written to logs"
            )
        query = parse_qsl(parts.query, keep_blank_values=True)
        if parts.fragment or [name for name, _ in query] not in ([], ["prefix"]):
            raise ValueError(f"index {url!r}: only ?prefix=NAME may follow the address of a server")
        prefix = dict(query).get("prefix", "")
        if query and not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,62}", prefix):
            raise ValueError(
                f"index {url!r}: prefix {prefix!r} is not 1 to 63 of a-z, 0-9, '_' and '-', the "
                "first a letter or digit"
            )
        plain = urlunsplit(parts._replace(query="", fragment=""))
        return cls(plain, parts.scheme, parts.hostname, parts.port, prefix)

    def prefixed(self, collection: str) -> str:
        """Return the name of a collection with the prefix."""
        return f"{self.prefix}{SEPARATOR}{collection}" if self.prefix else collection
