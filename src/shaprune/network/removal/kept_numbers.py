"""Numbers that a network's code keeps of its channels: attributes, entries of lists, variables of functions.

A path names one from the network: ``block.num_heads``, ``block.config.num_heads``, ``block.sizes[0]``, or
``block.pad<planes>``, a variable that the function ``block.pad`` has taken from around it.
"""

from __future__ import annotations

from copy import copy as shallow
from types import CellType, FunctionType
from typing import Any

from torch import nn

from shaprune.errors import SurgeryError

Entry = int | str | None  # of a list or tuple; a variable of a function; the attribute itself


def entry_text(entry: Entry) -> str:
    """How an entry stands in a path."""
    return "" if entry is None else f"[{entry}]" if isinstance(entry, int) else f"<{entry}>"


def entries_of(held: Any) -> list[tuple[Entry, int]]:
    """The numbers of an attribute."""
    if type(held) is int:
        return [(None, held)]
    if type(held) in (list, tuple):
        return [(i, value) for i, value in enumerate(held) if type(value) is int]
    if isinstance(held, FunctionType):
        return [(name, value) for name, value in _variables(held).items() if type(value) is int]
    return []


def with_entry(held: Any, entry: Entry, number: int) -> Any:
    """What stands in the place of an attribute one of whose numbers is another."""
    if entry is None:
        return number
    if isinstance(entry, int):
        return type(held)(number if i == entry else value for i, value in enumerate(held))
    cells = held.__closure__ or ()
    names = held.__code__.co_freevars
    taken = tuple(CellType(number) if name == entry else cell for name, cell in zip(names, cells, strict=True))
    made = FunctionType(held.__code__, held.__globals__, held.__name__, held.__defaults__, taken)
    made.__kwdefaults__ = held.__kwdefaults__
    return made


def divide_number(model: nn.Module, path: str, left: int, dense: int) -> None:
    """Give a number of a module, or of a module's own copy of an object, its share.

    Raises:
        SurgeryError: the number cannot be divided like this.
    """
    owner, _, key = path.rpartition(".")
    name, entry = _parsed(key)
    try:
        holder: Any = model.get_submodule(owner)
    except AttributeError:
        outer, _, kept_as = owner.rpartition(".")
        module = model.get_submodule(outer)
        holder = shallow(getattr(module, kept_as))  # a configuration, which other layers read, too
        setattr(module, kept_as, holder)
    held = getattr(holder, name)
    value = dict(entries_of(held))[entry]
    if value * left % dense:
        raise SurgeryError(f"{path} = {value} cannot be divided as {left} of {dense} channels; keep others")
    setattr(holder, name, with_entry(held, entry, value * left // dense))


def _parsed(key: str) -> tuple[str, Entry]:
    if key.endswith("]"):
        name, _, entry = key[:-1].partition("[")
        return name, int(entry)
    name, _, variable = key.rstrip(">").partition("<")
    return name, variable or None


def _variables(function: FunctionType) -> dict[str, Any]:
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not given yet
            continue
    return found
