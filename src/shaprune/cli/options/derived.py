"""Commands' options from the fields of dataclasses: a parameter whose type is a dataclass becomes one option per field.

Fields made by `shaprune.options.fields.option` say their help there; groups that only the command line has are
dataclasses whose fields are annotated with Typer's own options.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, is_dataclass
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer

from shaprune.cli.options.choices import choice
from shaprune.cli.usage import as_usage_error
from shaprune.options.fields import Leaf, gathered, leaves

GIVEN = "given"  # the parameter of a command that takes all options as they were given, by name


@dataclass(frozen=True)
class Unset:
    """Marks a parameter that takes the options of a dataclass that were given, by name; the others are absent."""

    group: type


def read(group: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """What was given for the options of a group, texts read; what was not given is absent.

    Raises:
        typer.BadParameter: a text that means nothing.
    """
    found: dict[str, Any] = {}
    for leaf in leaves(group):
        value, about = given.get(leaf.name), leaf.about
        if value is None or value == []:
            continue
        if about is not None and about.read is not None:
            with as_usage_error(leaf.flag):
                value = about.read(value)
        found[leaf.name] = value
    return found


def made(group: type, given: Mapping[str, Any]) -> Any:
    """The group of what was given.

    Raises:
        typer.BadParameter: a text that means nothing, or options that do not go together.
    """
    found = read(group, given)
    with as_usage_error(", ".join(leaf.flag for leaf in leaves(group) if leaf.name in found)):
        return gathered(group, found)


def signature_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The flat options of a command, by name."""
    found: dict[str, inspect.Parameter] = {}
    for name, parameter, hint in _parameters(function):
        if name == GIVEN:
            continue
        kind, unset = _group_of(hint)
        if kind is None:
            found[name] = parameter.replace(annotation=hint, kind=inspect.Parameter.KEYWORD_ONLY)
            continue
        for leaf in leaves(kind):
            flat = _parameter(leaf, unset)
            if flat is not None:
                found[leaf.name] = flat
    return found


def regrouped(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a command from its flat options.

    Raises:
        typer.BadParameter: as `made`.
    """
    arguments: dict[str, Any] = {}
    for name, parameter, hint in _parameters(function):
        kind, unset = _group_of(hint)
        if name == GIVEN:
            arguments[name] = dict(given)
        elif kind is None:
            arguments[name] = given.get(name, parameter.default)
        else:
            arguments[name] = (read if unset else made)(kind, given)
    return arguments


def _parameters(function: Callable[..., Any]) -> Iterator[tuple[str, inspect.Parameter, Any]]:
    hints = get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        yield name, parameter, hints[name]


def _group_of(hint: Any) -> tuple[type | None, bool]:
    """The dataclass that a parameter takes, and whether it takes only what was given of it."""
    if get_origin(hint) is Annotated:
        marks = [mark for mark in get_args(hint)[1:] if isinstance(mark, Unset)]
        return (marks[0].group, True) if marks else (None, False)
    return (hint, False) if isinstance(hint, type) and is_dataclass(hint) else (None, False)


def _parameter(leaf: Leaf, unset: bool) -> inspect.Parameter | None:
    """The option of a field; None for a field that is for Python alone."""
    default = leaf.field.default
    if get_origin(leaf.hint) is Annotated:  # a group of the command line
        hint = leaf.hint
    elif leaf.about is None:
        return None
    else:
        hint, default = _declared(leaf, unset)
    plain = inspect.Parameter(leaf.name, inspect.Parameter.KEYWORD_ONLY, annotation=hint)
    return plain if default is MISSING else plain.replace(default=default)


def _declared(leaf: Leaf, unset: bool) -> tuple[Any, Any]:
    """The annotation and the default of an option, from what its field says."""
    about, default = leaf.about, leaf.field.default
    assert about is not None
    texts = about.read is not None or bool(about.names)
    kind = list[str] if about.repeated else str if texts else _plain(about.plain or leaf.hint)
    shown = about.shown or ("" if default in (MISSING, None, (), False) else str(default))
    told: dict[str, Any] = {"help": about.help, "metavar": about.metavar, "min": about.least}
    if unset or about.read is not None or about.repeated:
        kind, default = kind | None, None if unset or default is not MISSING else default
        told["show_default"] = shown or False
    elif about.shown:
        told["show_default"] = shown
    if about.names:
        told |= choice(leaf.name.replace("_", " "), about.names)
    if kind in (bool, bool | None) or about.flag is not None:
        return Annotated[kind, typer.Option(leaf.flag, **told)], default
    return Annotated[kind, typer.Option(**told)], default


def _plain(hint: Any) -> Any:
    """A type that Typer knows: Literal is text."""
    return str if get_origin(hint) not in (None, Union, types.UnionType) else hint


def renamed_options(names: Mapping[str, str]) -> dict[str, inspect.Parameter]:
    """Hidden options that are refused with their new name."""
    return {
        name: inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[str | None, typer.Option(hidden=True, callback=_refusing(name, new))],
        )
        for name, new in names.items()
    }


def _refusing(name: str, new: str) -> Callable[[str | None], str | None]:
    def refuse(value: str | None) -> str | None:
        if value is not None:
            raise typer.BadParameter(f"it is --{new} now", param_hint=f"--{name}")
        return value

    return refuse
