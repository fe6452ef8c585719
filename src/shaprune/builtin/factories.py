"""Objects named on a command line as ``package.module:factory``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shaprune.builtin.splits import Dataset, Split, n_held_out
from shaprune.errors import InputError, nearest

EXTRAS = ("timm", "torchvision", "transformers")  # packages of networks that are extras of shaprune


def call_factory(spec: str, *, what: str, hint: str = "") -> object:
    """Import ``package.module:factory`` and call it without arguments.

    Modules in the current directory are found, as with ``python -m``. What the factory itself raises goes through.

    Args:
        what: what the factory makes ("model", "data"), for the message of an error.
        hint: what such an error adds: what else could have been meant.

    Raises:
        InputError: not of that form, no such module, or no such callable in it.
    """
    with _modules_here():
        return _find(spec, what, hint)()


def find_function(spec: str, *, what: str, hint: str = "") -> Callable[..., object]:
    """The callable ``package.module:function``, not called; otherwise as `call_factory`."""
    with _modules_here():
        return _find(spec, what, hint)


def _find(spec: str, what: str, hint: str) -> Callable[..., object]:
    module_name, _, attribute = spec.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), *attribute.split(".")]):
        raise InputError(f"{what} {spec!r} is not of the form package.module:factory{hint}")
    try:
        found: object = importlib.import_module(module_name)
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        how = (
            f"pip install 'shaprune[{missing}]'"
            if missing in EXTRAS
            else "run from the folder that holds it, or install it"
        )
        raise InputError(
            f"{what} {spec!r}: module {module_name!r} cannot be imported ({error}); {how}{hint}"
        ) from error
    for name in attribute.split("."):
        if not hasattr(found, name):
            public = [n for n in dir(found) if not n.startswith("_")]
            raise InputError(f"{what} {spec!r}: {module_name} has no {name!r}{nearest(name, public)}")
        found = getattr(found, name)
    if not callable(found):
        raise InputError(f"{what} {spec!r} is a {type(found).__name__}; name a function or class that makes it")
    return found


@contextmanager
def _modules_here() -> Iterator[None]:
    """Modules in the current directory can be imported, until the end of the block."""
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        yield
    finally:
        if added and here in sys.path:
            sys.path.remove(here)


def call_dataset_factory(spec: str, *, hint: str = "") -> Dataset:
    """Make a data set with ``package.module:factory``.

    It returns a `Dataset`; a dict with ``train``, ``test`` and perhaps ``held_out``; or a tuple (train, test) or
    (train, held_out, test). Each part is a `Split` or ``(inputs, targets)``, tensors or arrays. Where nothing is held
    out, a tenth of the training part is (5,000 examples at most).
    """
    made = call_factory(spec, what="data", hint=hint)
    if isinstance(made, Dataset):
        return made
    if isinstance(made, tuple) and len(made) in (2, 3):
        made = dict(zip(("train", "held_out", "test") if len(made) == 3 else ("train", "test"), made, strict=True))
    if not isinstance(made, Mapping):
        raise InputError(
            f"data {spec!r} returned a {type(made).__name__}; "
            "return a Dataset, (train, test), (train, held_out, test) or a dict of these parts"
        )
    for key in made:
        if key not in ("train", "held_out", "test"):
            raise InputError(f"data {spec!r} returned a part {key!r}{nearest(str(key), ['train', 'held_out', 'test'])}")
    for key in ("train", "test"):
        if key not in made:
            raise InputError(f"data {spec!r} returned no part {key!r}; both train and test are needed")
    parts = {key: _as_split(part, f"data {spec!r}, part {key!r}") for key, part in made.items()}
    train = parts["train"]
    if "held_out" not in parts:
        order = torch.from_numpy(np.random.default_rng(0).permutation(len(train)))
        aside = order[: n_held_out(len(order))]
        rest = order[len(aside) :]
        parts["held_out"] = Split(train.inputs[aside], train.targets[aside])
        train = Split(train.inputs[rest], train.targets[rest])
    for key, part in {**parts, "train": train}.items():
        if not len(part):
            raise InputError(f"data {spec!r}: part {key!r} is empty; every part needs examples")
    targets = parts["test"].targets
    n_classes = 0 if targets.is_floating_point() else 1 + int(max(train.targets.max(), targets.max()))
    return Dataset(spec, train, parts["held_out"], parts["test"], tuple(str(c) for c in range(n_classes)))


def _as_split(part: Any, where: str) -> Split:
    if isinstance(part, Split):
        return part
    if not isinstance(part, (tuple, list)) or len(part) != 2:
        raise InputError(f"{where} is a {type(part).__name__}; it must be (inputs, targets)")
    try:
        return Split(*(torch.as_tensor(values) for values in part))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{where} cannot become tensors: {error}") from error
