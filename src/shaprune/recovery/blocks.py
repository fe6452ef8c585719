"""Block-wise reconstruction: each block of the pruned network learns to give what it gave in the dense one.

Blocks are trained one after the other, each on what the pruned network with the blocks before it feeds it, toward the
dense network's output behind the block (its sums included), by a few dozen steps of Adam; no labels, no gradients
through the rest. Batch-norms keep their statistics. The best weights on a fifth of the examples are kept, those before
the training included, so no block becomes worse there.

Related: Li et al., *BRECQ* (2021), which reconstructs blocks after quantisation.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shaprune.errors import InputError
from shaprune.network.batches import Forward, Inputs, length, pick_rows, run
from shaprune.network.borrow import device_of
from shaprune.network.hooks import AllSeenError, hooked
from shaprune.options.step_values import check_step
from shaprune.recovery.finetune import split_rows
from shaprune.recovery.folded_norms import TrainedCopy
from shaprune.recovery.lightning_trainer import TrainingResult
from shaprune.recovery.step_training import (
    AT_ONCE,
    FEW,
    StepSchedule,
    Task,
    TooFewSecondsError,
    said_of_few,
    train_steps,
    trained_parameters,
)

_MOST_BYTES = 1 << 28  # that the inputs, and the outputs, of one block may take
_LOOKS = 4  # measurements per block


@dataclass(frozen=True)
class Blocks:
    """Train the pruned network block by block to give what the dense one gives there; needs no labels.

    A block is the smallest module with layers inside that has lost something and whose output has kept its shape. A
    fifth of the examples is set aside for each, and its best weights on them are kept.

    Attributes:
        steps: of the optimizer, per block.
        lr: the highest learning rate.
        batch_size: examples per step.
        examples: at most.
        max_seconds: fewer steps, and then fewer blocks, are trained where these would not suffice; None = no limit.
    """

    steps: int = 40
    lr: float = 3e-4
    batch_size: int = 64
    examples: int = 2_000
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        check_step(self, whole=("steps", "batch_size", "examples"), positive=("lr", "max_seconds"))


def reconstruct_blocks(
    model: nn.Module, teacher: nn.Module, inputs: Inputs, step: Blocks, *, forward: Forward | None = None, seed: int = 0
) -> TrainingResult:
    """Train the blocks of ``model`` in place, one after the other.

    Args:
        model: the pruned network, in eval mode.
        teacher: the dense network, in eval mode.
        inputs: unlabelled examples, batch first.
        step: how.
        forward: ``(model, inputs) -> outputs`` where the model is not simply called.
        seed: of the split and the order of rows.

    Returns:
        How it went: the mean over blocks of the squared distance, relative to that before, at the start and at the end.

    Raises:
        InputError: no block is to be found, or a loss that is not finite.
    """
    began = time.perf_counter()
    picked = torch.randperm(length(inputs), generator=torch.Generator().manual_seed(seed))[: step.examples]
    few = pick_rows(inputs, slice(2))
    names = _blocks(model, teacher, few, forward)
    if not names:
        raise InputError(
            "no block to reconstruct: no module with layers inside has lost something and kept the shape of its "
            "output; use 'distill'"
        )
    shares: list[float] = []
    before: dict[str, tuple[Tensor, Tensor]] = {}
    ended = ""
    for number, name in enumerate(names):
        left = None
        if step.max_seconds is not None:
            left = (step.max_seconds - (time.perf_counter() - began)) / (len(names) - number)
        try:
            ours, theirs = _pairs(model, teacher, name, few, pick_rows(inputs, picked), forward, before)
            block = model.get_submodule(name)
            share = _train(block, ours, theirs, step, left, seed)
            shares.append(share)
            before = {name: (_through(block, ours), theirs)}
        except TooFewSecondsError:
            ended = f"the time ended after {number} of {len(names)} blocks"
            break
    mean = sum(shares) / len(shares) if shares else 1.0
    notes = (
        f"{len(shares)} blocks",
        *([said_of_few(len(picked))] if len(picked) < FEW else []),
        *([ended] if ended else []),
    )
    return TrainingResult((1.0, mean), 1 if mean < 1 else 0, None, step.steps * len(shares), notes)


def _train(block: nn.Module, ours: Tensor, theirs: Tensor, step: Blocks, left: float | None, seed: int) -> float:
    """Train a block; return the loss on the rows set aside, relative to that before."""
    if left is not None and left <= 0:
        raise TooFewSecondsError("no time is left for this block")
    train, watched = split_rows(len(ours), 0.2, seed)
    few = len(train) < FEW
    copy = TrainedCopy(block, None if few else ours)
    device = device_of(block)
    scale = theirs.float().var().clamp(min=1e-12).to(device)

    def loss_of(rows: Tensor) -> Tensor:
        return F.mse_loss(copy.model(ours[rows].to(device)), theirs[rows].to(device)) / scale

    every = max(1, step.steps // _LOOKS)
    schedule = StepSchedule(step.steps, step.lr, step.batch_size, seed, left, every=every)
    result = train_steps(Task(trained_parameters(copy.model, few), train, loss_of, watched), schedule)
    if result.kept:
        copy.write_back()
    first = result.losses[0]
    return result.losses[result.kept or 0] / first if first > 0 else 1.0


def _pairs(
    model: nn.Module,
    teacher: nn.Module,
    name: str,
    few: Inputs,
    inputs: Inputs,
    forward: Forward | None,
    before: dict[str, tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor]:
    """What a block reads in the pruned network, and what it should give; from the block before where that feeds it."""
    for previous, (read, wanted) in before.items():
        if all(_feeds(network, previous, name, few, forward) for network in (model, teacher)):
            return read, _through(teacher.get_submodule(name), wanted)
    sizes = [read[0].nbytes for read, _ in _seen(model, name, few, forward)]
    sizes += [given[0].nbytes for _, given in _seen(teacher, name, few, forward)]
    rows = torch.arange(min(length(inputs), max(1, _MOST_BYTES // max(*sizes, 1))))
    parts = [pick_rows(inputs, part) for part in rows.split(AT_ONCE)]
    reads = torch.cat([read.cpu() for part in parts for read, _ in _seen(model, name, part, forward)])
    wants = torch.cat([given.cpu() for part in parts for _, given in _seen(teacher, name, part, forward)])
    return reads, wants


def _seen(model: nn.Module, name: str, inputs: Inputs, forward: Forward | None) -> list[tuple[Tensor, Tensor]]:
    """What a block reads and gives on some examples; empty where they go past it."""
    found: list[tuple[Tensor, Tensor]] = []

    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        found.append((args[0], output.clone()))
        raise AllSeenError

    with suppress(AllSeenError), torch.no_grad(), hooked([model.get_submodule(name).register_forward_hook(hook)]):
        run(model, inputs, forward, device_of(model))
    return found


def _through(block: nn.Module, inputs: Tensor) -> Tensor:
    device = device_of(block)
    with torch.no_grad():
        return torch.cat([block(part.to(device)).cpu() for part in inputs.split(AT_ONCE)])


def _feeds(model: nn.Module, first: str, second: str, few: Inputs, forward: Forward | None) -> bool:
    """Whether a block reads just what another gives."""
    seen: dict[str, Any] = {}

    def after(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        seen["given"] = output

    def at(module: nn.Module, args: tuple[Any, ...]) -> None:
        seen["read"] = args[0]
        raise AllSeenError

    handles = (
        model.get_submodule(first).register_forward_hook(after),
        model.get_submodule(second).register_forward_pre_hook(at),
    )
    with suppress(AllSeenError), torch.no_grad(), hooked(handles):
        run(model, few, forward, device_of(model))
    return "given" in seen and seen["given"] is seen.get("read")


def _blocks(model: nn.Module, teacher: nn.Module, few: Inputs, forward: Forward | None) -> list[str]:
    """The smallest modules with layers inside that have lost something and kept their shape, in order of execution."""
    ours, theirs = (_calls(network, few, forward) for network in (model, teacher))
    dense = {name: p.shape for name, p in teacher.named_parameters()}
    lost = {name.rpartition(".")[0] for name, p in model.named_parameters() if p.shape != dense.get(name)}
    found = []
    for name, shapes in ours.items():
        inside = f"{name}."
        changed = any(layer.startswith(inside) for layer in lost)
        if name and changed and len(shapes) == 1 and shapes == theirs.get(name) and shapes[0] is not None:
            found.append(name)
    return [name for name in found if not any(other.startswith(f"{name}.") for other in found)]


def _calls(model: nn.Module, few: Inputs, forward: Forward | None) -> dict[str, list[torch.Size | None]]:
    """Modules with modules inside, by the end of their first call: the shapes they gave to one tensor; None = else."""
    seen: dict[str, list[torch.Size | None]] = {}

    def note(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        plain = len(args) == 1 and isinstance(args[0], Tensor) and not kwargs and isinstance(output, Tensor)
        seen.setdefault(name, []).append(output.shape if plain else None)

    inner: list[tuple[str, Callable[..., None]]] = [
        (name, partial(note, name)) for name, module in model.named_modules() if any(module.children())
    ]
    handles = (model.get_submodule(name).register_forward_hook(hook, with_kwargs=True) for name, hook in inner)
    with torch.no_grad(), hooked(handles):
        run(model, few, forward, device_of(model))
    return seen
