"""The calls of a model's modules in one run, and which of them are over before a mask can change anything.

Functions of torch that do a layer's work are followed as modules are: attention is a module in some models, a function
in others.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shaprune.network.batches import Inputs, call, tensors, transform
from shaprune.network.hooks import hooked
from shaprune.network.layers.replaced_calls import Callee, Forward, replace_forwards
from shaprune.network.removal.masks import MaskSite

_ATTENTION = {"scaled_dot_product_attention", "softmax", "matmul", "bmm", "baddbmm", "einsum"}
_LAYERS = {"linear", "conv1d", "conv2d", "conv3d", "layer_norm"}
RECORDED_FUNCTIONS = frozenset(
    _ATTENTION | _LAYERS
)  # no sums: models leave out masks that hide nothing, so that these vary


class DivergedError(Exception):
    """The recorded outputs of modules cannot be returned: a run calls them otherwise than the recorded one did."""


@dataclass(frozen=True, eq=False)
class TensorSlot:
    """A tensor that a module returns.

    Attributes:
        key: its number among all.
        one: its shape for one example.
        dtype: its type.
        moving: it has entries for each example, side by side (several where these are windows, or tokens); if not, it
            is the same for all examples.
        order: its dimensions as they lie in memory.
    """

    key: int
    one: tuple[int, ...]
    dtype: torch.dtype
    moving: bool
    order: tuple[int, ...]

    def shape(self, rows: int) -> tuple[int, ...]:
        """Of the tensor for so many rows."""
        return (rows * self.one[0], *self.one[1:]) if self.moving else self.one

    def packed(self, tensor: Tensor, rows: int) -> Tensor:
        """A copy of a moving tensor with the examples in front, (rows, ...), contiguous."""
        laid = tensor.detach().permute(self.order)
        return laid.clone(memory_format=torch.contiguous_format).view(rows, self.one[0], *laid.shape[1:])

    def unpacked(self, packed: Tensor) -> Tensor:
        """The moving tensor, a view of what `packed` gave, laid out in memory as it was."""
        return packed.flatten(0, 1).permute([self.order.index(i) for i in range(len(self.order))])


@dataclass(frozen=True, eq=False)
class RecordedOutput:
    """The recorded output of one call of a module: ``slots`` in the places of the tensors in ``form``."""

    form: Any
    slots: tuple[TensorSlot, ...]

    def filled(self, given: Iterable[Tensor]) -> Any:
        """The form with these tensors."""
        given = iter(given)
        return transform(self.form, lambda _: next(given))

    def fits(self, output: Any) -> bool:
        """Whether an output has this form."""
        return is_rebuildable(output) and _same_structure(self.form, output)


ReplayPlan = dict[
    Callee, list[RecordedOutput | None]
]  # the calls before the mask: what each returns, or None where it runs


@dataclass(eq=False)
class RecordedCall:
    """One call in a recorded run that began before the first masked module was entered.

    Attributes:
        outer: position of the call around it; None for the model's own.
        over: it ended before, too.
        form: its output without content; None where it cannot be replayed.
    """

    who: Callee
    outer: int | None
    over: bool = False
    form: Any = None


def plan_replay(
    model: nn.Module, sites: Sequence[MaskSite], one: Inputs, three: Inputs
) -> tuple[ReplayPlan, RecordedOutput]:
    """The outermost calls that are over before the first mask, and whose outputs can be replayed.

    Args:
        model: in eval mode.
        sites: where the masks stand.
        one, three: inputs of so many rows; they differ in the number of examples alone.

    Returns:
        For everyone with such a call, all calls, in order, that are made before the mask where these are answered; and
        the inputs themselves, as if a call had given them. Functions are left out where their calls depend on the
        number of examples.

    Raises:
        DivergedError: no output can be replayed, or the calls of modules depend on the number of examples.
    """
    for functions in (RECORDED_FUNCTIONS, ()):
        first, second = _recorded(model, sites, one, functions), _recorded(model, sites, three, functions)
        if [(c.who, c.outer, c.over) for c in first] == [(c.who, c.outer, c.over) for c in second]:
            break
    else:
        raise DivergedError("which of its modules are called depends on the number of examples")
    given = _recorded_output(_form(one), _form(three), 0)
    if given is None:
        raise DivergedError("its inputs are not made of tensors with the examples in front")
    plan: ReplayPlan = {}
    inside: set[int] = set()  # calls that are answered, and calls within these
    slots = len(given.slots)
    for i, (a, b) in enumerate(zip(first, second, strict=True)):
        if a.outer in inside:
            inside.add(i)
            continue
        handed = _recorded_output(a.form, b.form, slots) if a.over else None
        if handed is not None and isinstance(a.who, str) and not all(slot.moving for slot in handed.slots):
            handed = None  # numbers over a batch
        plan.setdefault(a.who, []).append(handed)
        if handed is not None:
            inside.add(i)
            slots += len(handed.slots)
    if not inside and any(c.over for c in first if isinstance(c.who, nn.Module)):
        raise DivergedError("no module before the mask gives one result per example")
    return {who: calls for who, calls in plan.items() if any(calls)}, given


def _recorded(
    model: nn.Module, sites: Sequence[MaskSite], inputs: Inputs, functions: Collection[str]
) -> list[RecordedCall]:
    """The calls of a dense run before the mask, in the order in which they begin."""
    calls: list[RecordedCall] = []
    around: list[int] = []
    entered = False

    def enter() -> None:
        nonlocal entered
        entered = True

    def of(who: Callee, forward: Forward) -> Forward:
        def recorded(*args: Any, **kwargs: Any) -> Any:
            if entered:
                return forward(*args, **kwargs)
            one = RecordedCall(who, around[-1] if around else None)
            around.append(len(calls))
            calls.append(one)
            try:
                output = forward(*args, **kwargs)
            finally:
                around.pop()
            one.over = not entered
            if (
                one.over
                and is_rebuildable(output)
                and tensors(output)
                and (who not in functions or _fresh(output, args, kwargs))
            ):
                one.form = _form(output)
            return output

        return recorded

    with replace_forwards([*model.modules(), *functions], of), on_mask_entered(model, sites, enter):
        call(model, transform(inputs, torch.clone))
    if not entered:
        raise DivergedError("none of the masked modules is called")
    return calls


def _form(value: Any) -> Any:
    return transform(value, lambda t: t.detach().to("meta"))


def _fresh(output: Any, *given: Any) -> bool:
    """Whether no tensor of an output is one of those given, or a part of it."""
    ours, theirs = ({t.untyped_storage().data_ptr() for t in tensors(tree)} for tree in (output, given))
    return not ours & theirs


def _recorded_output(one: Any, three: Any, slots: int) -> RecordedOutput | None:
    """What a call returns, given its outputs' forms for one and for three rows; None where they do not determine it."""
    if one is None or three is None or not _same_structure(one, three):
        return None
    found: list[TensorSlot] = []
    for a, b in zip(tensors(one), tensors(three), strict=True):
        slot = TensorSlot(slots + len(found), tuple(a.shape), a.dtype, a.shape != b.shape, _order(b))
        if slot.moving and (not a.ndim or b.shape != slot.shape(3)):
            return None
        found.append(slot)
    return RecordedOutput(one, tuple(found))


def _order(tensor: Tensor) -> tuple[int, ...]:
    """The dimensions as they lie in memory, outermost first, where the first of them is outermost."""
    strides = tensor.stride()
    order = sorted(range(tensor.ndim), key=lambda i: -strides[i])
    usual = order[:1] != [0] or not tensor.permute(order).is_contiguous()
    return tuple(range(tensor.ndim) if usual else order)


def is_rebuildable(output: Any) -> bool:
    """Whether an output is made of plain tensors, tuples, lists, dicts and numbers, so that it can be built again."""
    if isinstance(output, Tensor):
        return type(output) in (Tensor, nn.Parameter) and output.layout == torch.strided
    if type(output) is dict:
        return all(is_rebuildable(value) for value in output.values())
    if type(output) in (tuple, list):
        return all(is_rebuildable(value) for value in output)
    return output is None or type(output) in (bool, int, float, str)


def _same_structure(a: Any, b: Any) -> bool:
    """Whether two usable outputs have the same structure, apart from the tensors' shapes."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(_same_structure(a[key], b[key]) for key in a)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(_same_structure, a, b))
    return bool(a == b)


@contextmanager
def on_mask_entered(model: nn.Module, sites: Sequence[MaskSite], say: Callable[[], None]) -> Iterator[None]:
    """``say()`` whenever a masked module is entered.

    A hook on a module also keeps torch from fused ways past its children, so that these are called with and without
    masks.
    """
    modules = dict.fromkeys(model.get_submodule(site.module) for site in sites)
    with hooked(module.register_forward_pre_hook(lambda *_: say()) for module in modules):
        yield
