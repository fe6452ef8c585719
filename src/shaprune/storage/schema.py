"""The head that every JSON document of shaprune has: which kind it is, and the version of its form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from shaprune.errors import InputError
from shaprune.storage.atomic_files import read_json

T = TypeVar("T")
_WRITERS = {
    "values": "score",
    "plan": "plan",
    "sensitivity": "sensitivity",
    "frontier": "plan --sweep",
    "manifest": "prune",
}  # kind -> the command that writes it


def check_schema(data: Any, kind: str, schema: int) -> None:
    """Check the head of a JSON document written by shaprune.

    Raises:
        InputError: another kind of document, or a newer schema.
    """
    if not isinstance(data, dict) or data.get("kind") != kind or type(data.get("schema")) is not int:
        other = data.get("kind") if isinstance(data, dict) else None
        holds = f", but {other}" if isinstance(other, str) and other != kind else ""
        wanted = f"; give what `shaprune {_WRITERS[kind]}` writes" if kind in _WRITERS else ""
        raise InputError(f"this is no {kind} written by shaprune{holds}{wanted}")
    if data["schema"] > schema:
        raise InputError(f"{kind} of schema {data['schema']}, newer than {schema}; update shaprune")


def head(kind: str, schema: int = 1) -> dict[str, Any]:
    """Return the keys that a document begins with; by these it is recognised where it may be replaced."""
    return {"schema": schema, "kind": kind}


def read_document(path: str | Path, parse: Callable[[Any], T]) -> T:
    """Return what ``parse`` makes of a JSON file; its errors name the file.

    Raises:
        InputError: the file cannot be read, is not JSON, or is refused by ``parse``.
    """
    data = read_json(path)
    try:
        return parse(data)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
