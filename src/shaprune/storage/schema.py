"""The head that every JSON document of shaprune has: which kind it is, and the version of its form."""

from __future__ import annotations

from typing import Any

from shaprune.errors import InputError


def check_schema(data: Any, kind: str, schema: int) -> None:
    """Check the head of a JSON document written by shaprune.

    Raises:
        InputError: another kind of document, or a newer schema.
    """
    if not isinstance(data, dict) or data.get("kind") != kind or type(data.get("schema")) is not int:
        raise InputError(f"this is no {kind} written by shaprune")
    if data["schema"] > schema:
        raise InputError(f"{kind} of schema {data['schema']}, newer than {schema}; update shaprune")


def head(kind: str, schema: int = 1) -> dict[str, Any]:
    """Return the keys that a document begins with; by these it is recognised where it may be replaced."""
    return {"schema": schema, "kind": kind}
