"""The calls of a model's modules in one run, and which of them are over before a mask can change anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shaprune.network.batches import Inputs, call, tensors, transform
from shaprune.network.masks import Site

Forward = Callable[..., Any]


class DivergedError(Exception):
    """Why what modules gave cannot be handed out again: a run calls them otherwise than the recorded one did."""


@dataclass(frozen=True, eq=False)
class Slot:
    """A tensor that a module hands out.

    Attributes:
        key: its number among all.
        like: its shape for one example, and its type; without content.
        moving: it has entries for each example, side by side (several where these are windows, or tokens); if not, it
            is the same for all examples.
    """

    key: int
    like: Tensor
    moving: bool

    def shape(self, rows: int) -> tuple[int, ...]:
        """Of the tensor for so many rows."""
        return (rows * len(self.like), *self.like.shape[1:]) if self.moving else tuple(self.like.shape)


@dataclass(frozen=True, eq=False)
class Handed:
    """What one call of a module hands out: ``slots`` in the places of the tensors in ``form``."""

    form: Any
    slots: tuple[Slot, ...]

    def filled(self, given: Iterable[Tensor]) -> Any:
        """The form with these tensors."""
        given = iter(given)
        return transform(self.form, lambda _: next(given))

    def fits(self, output: Any) -> bool:
        """Whether an output has this form."""
        return usable(output) and _alike(self.form, output)


Plan = dict[nn.Module, list[Handed | None]]  # per module, its calls: what each hands out, or None where it runs


@dataclass(eq=False)
class Called:
    """One call in a recorded run.

    Attributes:
        outer: position of the call around it; None for the model's own.
        early: it began before the first masked module was entered.
        over: it ended before, too.
        form: its output without content; None where it cannot be handed out.
    """

    module: nn.Module
    outer: int | None
    early: bool
    over: bool = False
    form: Any = None


def planned(model: nn.Module, sites: Sequence[Site], one: Inputs, three: Inputs) -> Plan:
    """The outermost calls that are over before the first mask, and whose outputs can be handed out.

    Args:
        model: in eval mode.
        sites: where the masks stand.
        one, three: inputs of so many rows; what they tell apart is the number of examples.

    Returns:
        For every module with such a call, all of its calls, in order, that are made where these calls are answered.

    Raises:
        DivergedError: nothing can be handed out, or the calls depend on the number of examples.
    """
    first, second = _recorded(model, sites, one), _recorded(model, sites, three)
    early = sum(c.early for c in first)
    if [(c.module, c.outer, c.over) for c in first[:early]] != [(c.module, c.outer, c.over) for c in second if c.early]:
        raise DivergedError("which of its modules are called depends on the number of examples")
    plan: Plan = {}
    inside: set[int] = set()  # calls that are answered, and calls within these
    slots = 0
    for i, (a, b) in enumerate(zip(first[:early], second, strict=False)):
        if a.outer in inside:
            inside.add(i)
            continue
        handed = _handed(a, b, slots) if a.over else None
        plan.setdefault(a.module, []).append(handed)
        if handed is not None:
            inside.add(i)
            slots += len(handed.slots)
    if not inside and any(c.over for c in first):
        raise DivergedError("no module before the mask gives one result per example")
    plan = {module: calls for module, calls in plan.items() if any(calls)}
    later, again = (Counter(c.module for c in calls[early:]) for calls in (first, second))
    if any(later[module] != again[module] for module in plan):
        raise DivergedError("how often its modules are called depends on the examples")
    return {module: [*calls, *[None] * later[module]] for module, calls in plan.items()}


def _recorded(model: nn.Module, sites: Sequence[Site], inputs: Inputs) -> list[Called]:
    """All calls of a dense run, in the order in which they begin."""
    calls: list[Called] = []
    around: list[int] = []
    entered = False

    def enter() -> None:
        nonlocal entered
        entered = True

    def of(module: nn.Module, forward: Forward) -> Forward:
        def recorded(*args: Any, **kwargs: Any) -> Any:
            one = Called(module, around[-1] if around else None, not entered)
            around.append(len(calls))
            calls.append(one)
            try:
                output = forward(*args, **kwargs)
            finally:
                around.pop()
            one.over = not entered
            if one.over and usable(output) and tensors(output):
                one.form = transform(output, lambda t: t.detach().to("meta"))
            return output

        return recorded

    with replaced(list(model.modules()), of), heard(model, sites, enter):
        call(model, transform(inputs, torch.clone))
    if not entered:
        raise DivergedError("none of the masked modules is called")
    return calls


def _handed(one: Called, three: Called, slots: int) -> Handed | None:
    """What a call hands out, given its outputs for one and for three rows; None where it cannot be told."""
    if one.form is None or three.form is None or not _alike(one.form, three.form):
        return None
    found: list[Slot] = []
    for a, b in zip(tensors(one.form), tensors(three.form), strict=True):
        slot = Slot(slots + len(found), a, a.shape != b.shape)
        if slot.moving and (not a.ndim or b.shape != slot.shape(3)):
            return None
        found.append(slot)
    return Handed(one.form, tuple(found))


def usable(output: Any) -> bool:
    """Whether an output is made of plain tensors, tuples, lists, dicts and numbers, so that it can be built again."""
    if isinstance(output, Tensor):
        return type(output) in (Tensor, nn.Parameter) and output.layout == torch.strided
    if type(output) is dict:
        return all(usable(value) for value in output.values())
    if type(output) in (tuple, list):
        return all(usable(value) for value in output)
    return output is None or type(output) in (bool, int, float, str)


def _alike(a: Any, b: Any) -> bool:
    """Whether two usable outputs have the same structure, apart from the tensors' shapes."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(_alike(a[key], b[key]) for key in a)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(_alike, a, b))
    return bool(a == b)


@contextmanager
def replaced(modules: Iterable[nn.Module], of: Callable[[nn.Module, Forward], Forward]) -> Iterator[None]:
    """Modules run ``of(module, their forward)`` instead of their forward; undone on any exit."""
    before: list[tuple[nn.Module, bool, Forward]] = []
    try:
        for module in modules:
            if not isinstance(module, torch.jit.ScriptModule):  # these do not let theirs go
                forward = module.forward
                before.append((module, "forward" in vars(module), forward))
                module.forward = of(module, forward)
        yield
    finally:
        for module, own, forward in before:
            if own:
                module.forward = forward
            else:
                del module.forward


@contextmanager
def heard(model: nn.Module, sites: Sequence[Site], say: Callable[[], None]) -> Iterator[None]:
    """``say()`` whenever a masked module is entered.

    A hook on a module also keeps torch from fused ways past its children, so that these are called with and without
    masks.
    """
    modules = dict.fromkeys(model.get_submodule(site.module) for site in sites)
    handles = [module.register_forward_pre_hook(lambda *_: say()) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
