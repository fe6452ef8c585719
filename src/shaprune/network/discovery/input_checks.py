"""A trial run of a model on example inputs: what does not fit is refused before any work, with the next step."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from shaprune.errors import InputError
from shaprune.network.batches import Inputs, all_equal, call, length, tensors, transform
from shaprune.network.borrow import device_of
from shaprune.network.hooks import hooked
from shaprune.network.layers.kinds import PRODUCERS, channel_axis, kind_of, widths_of

_VALUE_READERS = (
    "__bool__",
    "__float__",
    "__int__",
    "__index__",
    "item",
    "tolist",
    "numpy",
    "equal",
    "allclose",
    "is_nonzero",
)


def check_example_inputs(copy: nn.Module, inputs: Inputs) -> None:
    """Run example inputs: twice alike, to finite numbers, the same way whatever the channels' values.

    Args:
        copy: a private copy in eval mode.
        inputs: a tensor, a tuple of positional inputs or a dict of keyword inputs, batch first.

    Raises:
        InputError: naming the argument or the layer that does not fit, or the module whose outputs differ between runs
            or whose code asks for values.
    """
    if not tensors(inputs):
        raise InputError(
            f"example_inputs is a {type(inputs).__name__} without a tensor; give a tensor, a tuple or a dict"
        )
    if length(inputs) == 0:
        raise InputError("example_inputs holds no example; give at least one")
    if any(t.is_meta for t in tensors(inputs)):
        raise InputError(f"example_inputs is on the meta device and has no values; move it to {device_of(copy)}")
    _check_arguments(copy, inputs)
    with torch.no_grad():
        before = {name: buffer.clone() for name, buffer in copy.named_buffers()}
        try:
            first, second = (tensors(_run_once(copy, inputs)) for _ in range(2))
        except Exception as error:
            raise InputError(_explained(copy, inputs, error)) from error
        if not first:
            raise InputError("the model returns no tensor; wrap it so that forward returns one")
        if not all(torch.isfinite(t).all() for t in first if t.is_floating_point()):
            raise InputError(
                "the model's output on example_inputs is NaN or infinite; check the weights and the inputs"
            )
        changed = _changed_buffers(copy, before)
        same = all_equal(first, second)
        if not same and changed:
            raise InputError(
                f"the model is not deterministic in eval mode: it writes to its buffer {changed[0]!r} as it runs, and "
                "two runs on the same inputs differ; freeze it (observers: torch.ao.quantization.disable_observer)"
            )
        if not same:
            raise InputError(
                "the model is not deterministic in eval mode: two runs on the same inputs differ, first in "
                f"{_first_to_differ(copy, inputs)}; make it deterministic in eval mode"
            )
        looking = _looks_at_values(copy, inputs)
    if looking is not None:
        raise InputError(
            f"the way through the model depends on values: {looking} asks for a number that was computed from channels "
            "(if tensor, .item(), float(tensor)), and without some of them could go another way; select with "
            "torch.where, or leave the question out of forward"
        )


def _changed_buffers(copy: nn.Module, before: dict[str, Tensor]) -> list[str]:
    """Names of the buffers that are no longer as ``before``, to which they are put back."""
    now = dict(copy.named_buffers())
    changed = [name for name in before if name not in now or not torch.equal(now[name], before[name])]
    for name in changed:
        owner, _, own = name.rpartition(".")
        copy.get_submodule(owner)._buffers[own] = before[name]
    return changed


def _run_once(copy: nn.Module, inputs: Inputs) -> Any:
    return call(copy, transform(inputs, torch.clone))  # a model may write to what it is given


def _check_arguments(copy: nn.Module, inputs: Inputs) -> None:
    try:
        signature = inspect.signature(copy.forward)
    except (TypeError, ValueError):
        return  # a forward that is no Python function finds out for itself
    args = () if isinstance(inputs, dict) else inputs if isinstance(inputs, tuple) else (inputs,)
    try:
        signature.bind(*args, **(inputs if isinstance(inputs, dict) else {}))
    except TypeError as error:
        given = f"the keywords {', '.join(inputs)}" if isinstance(inputs, dict) else f"{len(args)} positional"
        raise InputError(
            f"the model does not run on example_inputs: forward takes {signature}, and they give {given}: {error}; "
            "give a tuple of positional inputs, or a dict of keyword inputs"
        ) from error


def _explained(copy: nn.Module, inputs: Inputs, error: Exception) -> str:
    """What went wrong in which layer, what it takes and what it was given, and the next step."""
    shapes = [tuple(t.shape) for t in tensors(inputs)]
    failed: list[tuple[str, nn.Module, tuple[Any, ...]]] = []
    with _inside(copy) as running:
        try:
            _run_once(copy, inputs)
        except Exception:
            failed = running[-1:]
    told = f"the model does not run on example_inputs of shape {shapes}{_one_example(copy, inputs)}"
    reason = str(error).strip() or type(error).__name__
    if not failed or not failed[0][0]:
        return f"{told}: {reason}"
    name, module, args = failed[0]
    told += f": layer {name!r} ({type(module).__name__})"
    given = next(iter(tensors(args)), None)
    weight = getattr(module, "weight", None)
    if given is None or not isinstance(weight, Tensor) or kind_of(module) is None:
        return f"{told} fails: {reason}"
    if given.device != weight.device:
        return f"{told} is on {weight.device} and its input on {given.device}; move example_inputs to {weight.device}"
    if kind_of(module) == "embedding":
        takes = f"whole numbers from 0 to {module.num_embeddings - 1}"  # type: ignore[operator]
        return f"{told} takes {takes} and is given {given.dtype} up to {_largest(given)}: {reason}"
    if given.dtype != weight.dtype:
        return f"{told} computes in {weight.dtype} and is given {given.dtype}; convert example_inputs or the model"
    widths, axis = widths_of(module), channel_axis(module, given.ndim)
    if widths is not None and 0 <= axis < given.ndim and given.shape[axis] != widths[0]:
        return f"{told} takes {widths[0]} channels and is given {given.shape[axis]} in {tuple(given.shape)}: {reason}"
    return f"{told} fails on an input of shape {tuple(given.shape)}: {reason}"


def _one_example(copy: nn.Module, inputs: Inputs) -> str:
    """A hint where the inputs are one example that lacks the axis of the batch."""
    try:
        _run_once(copy, transform(inputs, lambda t: t[None]))
    except Exception:
        return ""
    return ", and does with an axis for the batch in front; give tensor.unsqueeze(0) for one example"


def _largest(tensor: Tensor) -> float:
    return tensor.max().item() if tensor.numel() else 0


def _first_to_differ(copy: nn.Module, inputs: Inputs) -> str:
    """The innermost module, in order of execution, that answers equal inputs differently."""

    def run() -> list[tuple[str, list[float], list[float]]]:
        answers: list[tuple[str, list[float], list[float]]] = []

        def record(name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            answers.append((_named(name, module), _digests(args), _digests(output)))

        with _inside(copy, record):
            _run_once(copy, inputs)
        return answers

    for (name, given, answer), (_, given_again, answer_again) in zip(run(), run(), strict=False):
        if given == given_again and answer != answer_again:
            return name
    return "no module alone"


def _digests(tree: Any) -> list[float]:
    """A number per tensor that changes when an entry does, or moves."""
    flat = [t.detach().double().flatten().nan_to_num() for t in tensors(tree) if not t.is_complex()]
    return [float(t @ torch.arange(1, len(t) + 1, dtype=t.dtype, device=t.device).cos()) for t in flat]


def _looks_at_values(copy: nn.Module, inputs: Inputs) -> str | None:
    """The first module whose code turns something computed from channels into a Python number."""

    def mark(name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if kind_of(module) in PRODUCERS:
            _mark(output)

    with _inside(copy, mark) as running:
        looks = _ValueReads(running)
        with looks:
            _run_once(copy, inputs)
    return looks.found


class _ValueReads(TorchFunctionMode):
    """Follows what is computed from marked tensors, and notes who asks for its value.

    Whole numbers are not followed: indices of the largest entries, or of those that are not zero, choose rows and
    experts for each example on its own.
    """

    def __init__(self, running: list[tuple[str, nn.Module, tuple[Any, ...]]]) -> None:
        super().__init__()
        self.running = running
        self.found: str | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if any(getattr(t, "_computed", False) for t in tensors((args, kwargs))):
            name = getattr(func, "__name__", "")
            if name in _VALUE_READERS and self.found is None:
                self.found = _named(*self.running[-1][:2])
            _mark(args[0] if name == "__setitem__" else output)
        return output


def _mark(tree: Any) -> None:
    for tensor in tensors(tree):
        if tensor.is_floating_point() or tensor.dtype == torch.bool:
            tensor._computed = True  # type: ignore[attr-defined]


def _named(name: str, module: nn.Module) -> str:
    return f"{name!r} ({type(module).__name__})" if name else f"the model's own forward ({type(module).__name__})"


@contextmanager
def _inside(
    copy: nn.Module, after: Callable[[str, nn.Module, tuple[Any, ...], Any], None] | None = None
) -> Iterator[list[tuple[str, nn.Module, tuple[Any, ...]]]]:
    """The modules that are running now, the innermost last; ``after`` is called as each of them ends."""
    running: list[tuple[str, nn.Module, tuple[Any, ...]]] = []

    def enter(name: str) -> Any:
        return lambda module, args: running.append((name, module, args))

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        name = running.pop()[0]
        if after is not None:
            after(name, module, args, output)

    modules = list(copy.named_modules())
    hooks = (
        h for name, m in modules for h in (m.register_forward_pre_hook(enter(name)), m.register_forward_hook(leave))
    )
    with hooked(hooks):
        yield running
