"""Names of a package that are imported on first use, so that importing the package stays fast."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def resolve_on_use(package: str, homes: Mapping[str, str], namespaces: tuple[str, ...] = ()) -> Callable[[str], Any]:
    """Return a ``__getattr__`` for a package.

    Args:
        package: full name, such as ``"shaprune.recovery"``.
        homes: public name -> full name of the module that defines it.
        namespaces: public modules right below the package.

    Returns:
        A function of a name that imports it, keeps it in the package, and returns it. It raises AttributeError for an
        unknown name, with the nearest one, and for a name of an earlier version, with its new one.
    """

    def resolve(name: str) -> Any:
        if name in namespaces:
            return import_module(f"{package}.{name}")
        if name not in homes:
            raise AttributeError(_unknown(package, name, (*homes, *namespaces)))
        value = getattr(import_module(homes[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return resolve


def _unknown(package: str, name: str, known: tuple[str, ...]) -> str:
    from shaprune.errors import nearest
    from shaprune.names.moved import moved_message

    return moved_message(f"{package}.{name}") or f"{package} has no {name!r}{nearest(name, known)}"
