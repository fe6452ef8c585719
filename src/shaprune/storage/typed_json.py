"""Types of JSON documents, checked strictly: a text is no number, and a field that is missing is no 0."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shaprune.errors import InputError

Count = Annotated[int, Field(ge=0, lt=1 << 53)]
Positive = Annotated[int, Field(ge=1, lt=1 << 53)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Size = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Document(BaseModel):
    """A JSON object; fields that it does not name are left alone."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


D = TypeVar("D", bound=Document)


def typed(kind: type[D], data: Any, what: str) -> D:
    """Check a JSON object.

    Args:
        kind: its fields and their types.
        data: what was read.
        what: how an error begins, such as ``"this plan is damaged"``.

    Raises:
        InputError: a field that is missing or not of its type, by name.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"][:4]))
        raise InputError(f"{what}: {repr(where) + ': ' if where else ''}{first['msg']}") from error
