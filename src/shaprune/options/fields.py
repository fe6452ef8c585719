"""Options as fields of frozen dataclasses: declared once, read by Python, by YAML files and by the command line.

A field made by `option` has a help text, and is an option of the command line and a key of a config file; any other
field is for Python alone. Groups of options may hold groups: `leaves` lists what lies in all of them, `gathered` makes
them from one flat mapping.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, is_dataclass
from functools import cache, wraps
from numbers import Real
from typing import Any, ParamSpec, TypeVar, get_type_hints

from shaprune.errors import InputError

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class About:
    """What the command line and a config file need of an option beside its name, type and default.

    Attributes:
        help: one sentence for ``--help``.
        flag: its name on the command line; None = that of the field.
        metavar: what stands for its value in the help.
        names: the names of a registry, one of which it is; any where empty.
        read: text -> value (texts -> value where ``repeated``); raises `InputError` for a text that means nothing.
        repeated: whether it may be given several times.
        plain: its type in a config file and on the command line; None = that of the field.
        least: the smallest number it may be.
        shown: its default in words.
    """

    help: str
    flag: str | None = None
    metavar: str | None = None
    names: tuple[str, ...] = ()
    read: Callable[[Any], Any] | None = None
    repeated: bool = False
    plain: Any = None
    least: float | None = None
    shown: str | None = None


def option(
    default: Any,
    help: str,
    *,
    flag: str | None = None,
    metavar: str | None = None,
    names: tuple[str, ...] = (),
    read: Callable[[Any], Any] | None = None,
    repeated: bool = False,
    plain: Any = None,
    least: float | None = None,
    shown: str | None = None,
) -> Any:
    """A field of a dataclass that is an option everywhere; ``default=...`` for one that must be given, see `About`."""
    known = About(help, flag, metavar, names, read, repeated, plain, least, shown)
    return field(metadata={"about": known}) if default is ... else field(default=default, metadata={"about": known})


@dataclass(frozen=True)
class Leaf:
    """One option of a group, however deep it lies.

    Attributes:
        field: of its dataclass.
        hint: the type of the field.
        path: the names of the fields that lead to it, its own last.
        owners: the dataclasses on that way, the outermost first.
    """

    field: Field[Any]
    hint: Any
    path: tuple[str, ...]
    owners: tuple[type, ...]

    @property
    def name(self) -> str:
        """Its name, the same everywhere."""
        return self.field.name

    @property
    def about(self) -> About | None:
        """The settings of `option`; None for a field that is for Python alone."""
        found: About | None = self.field.metadata.get("about")
        return found

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        return (self.about and self.about.flag) or f"--{self.name.replace('_', '-')}"

    def place(self, keyword: str) -> str:
        """Where Python takes it: ``options=sp.options.Compression(limits=sp.options.Limits(round_to=...))``."""
        inside = f"{self.name}=..."
        for name, owner in zip((keyword, *self.path)[-2::-1], self.owners[::-1], strict=True):
            inside = f"{name}=sp.options.{owner.__name__}({inside})"
        return inside


def leaves(group: type) -> tuple[Leaf, ...]:
    """All options of a dataclass, those of the groups in it in their place."""
    return tuple(_leaves(group, (), ()))


def _leaves(group: type, path: tuple[str, ...], owners: tuple[type, ...]) -> Iterator[Leaf]:
    hints = get_type_hints(group, include_extras=True)
    for one in fields(group):
        hint = hints[one.name]
        if isinstance(hint, type) and is_dataclass(hint) and "about" not in one.metadata:
            yield from _leaves(hint, (*path, one.name), (*owners, group))
        else:
            yield Leaf(one, hint, (*path, one.name), (*owners, group))


def help_of(group: type, name: str) -> str:
    """The help text of an option of a group."""
    return next(leaf.about.help for leaf in leaves(group) if leaf.name == name and leaf.about is not None)


def gathered(group: type[T], given: Mapping[str, Any]) -> T:
    """A dataclass, with the groups in it, from a flat mapping; what is absent has its default."""
    hints = get_type_hints(group, include_extras=True)
    made: dict[str, Any] = {}
    for one in fields(group):  # type: ignore[arg-type]  # a dataclass
        hint = hints[one.name]
        if isinstance(hint, type) and is_dataclass(hint) and "about" not in one.metadata:
            made[one.name] = gathered(hint, given)
        elif one.name in given:
            made[one.name] = given[one.name]
    return group(**made)


def spread(group: Any) -> dict[str, Any]:
    """The flat mapping that `gathered` reads: every option with a help text, by name."""
    found: dict[str, Any] = {}
    for leaf in leaves(type(group)):
        if leaf.about is not None:
            holder = group
            for name in leaf.path:
                holder = getattr(holder, name)
            found[leaf.name] = holder
    return found


def changed(*groups: Any, but: Sequence[str] = ()) -> list[Leaf]:
    """The options of groups that are not as they are by default."""
    return [
        leaf
        for group in groups
        for leaf in leaves(type(group))
        if leaf.name not in but and getattr(group, leaf.name) != leaf.field.default
    ]


def moved_keywords(
    groups: Mapping[str, type], renamed: Mapping[str, str] | None = None
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Refuse keywords that a function no longer takes, and name their new place; check the groups it is given.

    Args:
        groups: keyword of the function -> the dataclass it takes; the options in that are the keywords that moved.
        renamed: keyword -> where it went, for what has another name now.
    """

    @cache
    def places() -> dict[str, str]:
        return {leaf.name: leaf.place(name) for name, group in groups.items() for leaf in leaves(group)} | {
            **(renamed or {})
        }

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        own = set(function.__code__.co_varnames[: function.__code__.co_argcount + function.__code__.co_kwonlyargcount])

        @wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> T:
            moved = [f"{name}=... is now {places()[name]}" for name in kwargs.keys() - own if name in places()]
            if moved:
                raise MovedKeywordError(f"{function.__name__}: {'; '.join(sorted(moved))}")
            for name, group in groups.items():
                if kwargs.get(name) is not None and not hasattr(group, "of"):  # `of` reads other types, too
                    check_group(name, kwargs[name], group)
            return function(*args, **kwargs)

        return checked

    return decorate


def check_group(name: str, given: Any, group: type) -> None:
    """Check that ``given`` is this group of options, with groups in their places and numbers where numbers belong.

    Raises:
        InputError: it is something else; ``name`` is what the caller calls it.
    """
    if not isinstance(given, group):
        first = next(leaf for leaf in leaves(group) if leaf.about is not None or len(leaf.path) == 1)
        raise InputError(f"{name} is a {type(given).__name__}; give {first.place(name)}")
    hints = get_type_hints(group, include_extras=True)
    for one in fields(group):
        hint, value = hints[one.name], getattr(given, one.name)
        if isinstance(hint, type) and is_dataclass(hint):
            check_group(one.name, value, hint)
        elif hint in (int, float) and (isinstance(value, bool) or not isinstance(value, Real)):
            raise InputError(f"{one.name} is {value!r}; give a number")


class MovedKeywordError(InputError, TypeError):
    """A keyword that has moved into a dataclass, or has another name now."""


def as_list(value: str | Sequence[str]) -> list[str]:
    """One or several names as a list."""
    return [value] if isinstance(value, str) else list(value)
