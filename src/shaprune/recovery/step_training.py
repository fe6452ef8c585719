"""A training of so many steps, or seconds, that never ends worse than it began and goes on after an interruption.

Adam with 5 % of warm-up and a cosine down to zero. Every fifty steps the loss on rows set aside is measured, and the
weights with the lowest are what is left at the end; those before the first step count. Rows are drawn from the seed and
the number of the step alone, so that a training that goes on from a checkpoint takes the steps it would have taken.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from shaprune.errors import InputError
from shaprune.network.disk_buffer import is_out_of_memory
from shaprune.recovery.lightning_trainer import TrainingResult
from shaprune.storage.atomic_files import replacing_file

_BETAS = (0.9, 0.99)
_WARM_UP = 0.05  # share of the steps
EVERY = 50  # steps between two measurements of the loss on the rows set aside
AT_ONCE = 256  # examples per forward pass without gradients
FEW = 100  # examples, below which only scales and biases are trained
_TRIED = 3  # steps that are timed, and taken back, where seconds are limited


class TooFewSecondsError(InputError):
    """A time limit below one step."""


@dataclass(frozen=True)
class StepSchedule:
    """How long, how fast, and where to go on from.

    Attributes:
        steps: of the optimizer, at most.
        lr: the highest learning rate.
        batch_size: rows per step.
        seed: of the order of rows.
        max_seconds: fewer steps are taken where these would not suffice; None = no limit.
        checkpoint: a file written at every measurement, from which the same training goes on; None = none.
        key: what makes it the same training; compared with the file's.
        every: steps between two measurements of the loss on the rows set aside.
    """

    steps: int
    lr: float
    batch_size: int
    seed: int
    max_seconds: float | None = None
    checkpoint: Path | None = None
    key: str = ""
    every: int = EVERY


@dataclass(frozen=True, eq=False)
class Task:
    """What is learned.

    Attributes:
        parameters: what is trained, by name.
        rows: (n,) the numbers of the rows to train on.
        loss_of: the mean loss of some rows, with its graph.
        watched: the numbers of the rows set aside, whose loss decides.
        prepare: makes ready what `loss_of` wants of some rows, which are then cheaper.
    """

    parameters: Mapping[str, nn.Parameter]
    rows: Tensor
    loss_of: Callable[[Tensor], Tensor]
    watched: Tensor
    prepare: Callable[[Tensor], None] = lambda rows: None

    def watch(self) -> float:
        """The mean loss of the rows set aside."""
        with torch.no_grad():
            found = [(len(part), float(self.loss_of(part))) for part in self.watched.split(AT_ONCE)]
        return sum(n * loss for n, loss in found) / sum(n for n, _ in found)


def trained_parameters(model: nn.Module, few: bool) -> dict[str, nn.Parameter]:
    """The parameters that are trained: all, or those along one axis where there are few examples.

    Raises:
        InputError: there are none.
    """
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if few:
        found = {name: p for name, p in found.items() if p.ndim == 1} or found
    if not found:
        raise InputError("the model has no trainable parameter; call requires_grad_(True) on those to train")
    return found


def said_of_few(examples: int) -> str:
    """What a result says where there were few examples."""
    return f"{examples} examples are few: only scales and biases were trained"


def train_steps(task: Task, schedule: StepSchedule, began: float | None = None) -> TrainingResult:
    """Minimise a mean loss over rows, in place.

    Args:
        task: what is learned.
        schedule: how long and how fast.
        began: when the seconds began, by `time.perf_counter`; None = now.

    Returns:
        The losses watched, from before the first step on, the measurement that was kept, and why it ended early, if so.

    Raises:
        TooFewSecondsError: a time limit below one step.
        InputError: a loss that is not finite before the training, or a checkpoint of
            another training.
    """
    running = _Running(task, schedule, time.perf_counter() if began is None else began)
    if not running.resume():
        clock = time.perf_counter()
        first = task.watch()
        if not math.isfinite(first):
            raise InputError(f"the loss is {first} before the first step; look for NaN in the data and the weights")
        running.look = time.perf_counter() - clock
        running.total = schedule.steps
        running.note(first)
        if schedule.max_seconds is not None:
            running.total = _affordable(running)
            running.note(first, again=True)
    task.prepare(_drawn_until(running.total, task.rows, schedule))
    return running.ended(running.run())


@dataclass(eq=False)
class _Running:
    """Where a training stands."""

    task: Task
    schedule: StepSchedule
    began: float
    step: int = 0
    total: int = 0
    look: float = 0.0  # seconds that a measurement takes
    parts: int = 1  # in which the rows of a step are run, where all at once do not fit into memory
    losses: list[float] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.parameters = dict(self.task.parameters)
        self.fresh()

    def fresh(self) -> None:
        """Begin without a memory of gradients."""
        self.optimizer = torch.optim.Adam(self.parameters.values(), lr=self.schedule.lr, betas=_BETAS)

    def run(self) -> str | None:
        """Take the steps that are left; return why it was given up, if so."""
        clock, first = time.perf_counter(), self.step
        while self.step < self.total:
            if not self.take(_drawn(self.task.rows, self.schedule, self.step)):
                return f"the loss is not finite in step {self.step + 1}; lower lr (now {self.schedule.lr:g})"
            late = self.left() < 0
            if self.step % self.schedule.every == 0 or self.step == self.total or late:
                loss = self.task.watch()
                pace = (time.perf_counter() - clock) / (self.step - first)
                self.total = self.step if late else min(self.total, self.step + self.fitting(pace))
                self.note(loss)
        return None

    def left(self) -> float:
        """Seconds that steps may still take."""
        limit = self.schedule.max_seconds
        return math.inf if limit is None else limit - (time.perf_counter() - self.began) - self.look

    def fitting(self, pace: float) -> int:
        """How many steps fit into the seconds left."""
        left = self.left()
        return self.schedule.steps if left == math.inf else max(0, int(left / max(pace, 1e-9)))

    def gradients(self, rows: Tensor) -> bool:
        """Put the gradients of the mean loss in place; whether it is finite."""
        while True:
            try:
                self.optimizer.zero_grad()
                losses = []
                for part in rows.chunk(self.parts):
                    loss = self.task.loss_of(part) * (len(part) / len(rows))
                    loss.backward()
                    losses.append(loss.detach())
                return bool(torch.isfinite(torch.stack(losses)).all())
            except RuntimeError as error:
                if not is_out_of_memory(error) or self.parts >= len(rows):
                    raise
                self.parts *= 2

    def take(self, rows: Tensor) -> bool:
        """Take a step; False where the loss is not finite, and no step is taken."""
        if not self.gradients(rows):
            return False
        warm_up = max(1, round(_WARM_UP * self.total))
        behind = (self.step - warm_up) / max(1, self.total - warm_up)
        share = (self.step + 1) / warm_up if self.step < warm_up else 0.5 * (1 + math.cos(math.pi * behind))
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.lr * share
        self.optimizer.step()
        self.step += 1
        return True

    def note(self, loss: float, *, again: bool = False) -> None:
        """Keep the weights where the loss is the lowest so far; write the checkpoint.

        ``again``: the same measurement, where only the number of steps has changed.
        """
        if math.isfinite(loss) and loss < min(self.losses, default=math.inf):
            self.best = {name: p.detach().clone() for name, p in self.parameters.items()}
        if not again:
            self.losses.append(loss if math.isfinite(loss) else math.inf)
        if self.schedule.checkpoint is not None:
            self._write(self.schedule.checkpoint)

    def rewind(self) -> None:
        """Put the best weights in place, without gradients."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(self.best[name])
                parameter.grad = None

    def ended(self, diverged: str | None) -> TrainingResult:
        """The best weights in place, and how it went."""
        self.rewind()
        return TrainingResult(tuple(self.losses), self.losses.index(min(self.losses)), diverged, self.step)

    def resume(self) -> bool:
        """Go on from the checkpoint, if there is one."""
        path = self.schedule.checkpoint
        if path is None or not path.exists():
            return False
        try:
            with safe_open(path, "pt") as file:
                stood = json.loads((file.metadata() or {})["shaprune"])
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            same = stood["key"] == self.schedule.key
            self.step, self.total, self.losses = int(stood["step"]), int(stood["total"]), list(stood["losses"])
            self.began, self.look = self.began - float(stood["seconds"]), float(stood["look"])
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise InputError(f"{path} is no checkpoint of a training: {error}; give another path") from error
        if not same:
            raise InputError(
                f"{path} is the checkpoint of another training (network, data, options or seed differ); delete it, or "
                "give another path"
            )
        state: dict[int, dict[str, Tensor]] = {}
        with torch.no_grad():
            for i, (name, parameter) in enumerate(self.parameters.items()):
                parameter.copy_(found[f"now.{name}"])
                self.best[name] = found[f"best.{name}"].to(parameter.device)
                kept = {key: found.get(f"adam.{name}.{key}") for key in ("step", "exp_avg", "exp_avg_sq")}
                state |= {i: {key: t for key, t in kept.items() if t is not None}} if kept["step"] is not None else {}
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        return True

    def _write(self, path: Path) -> None:
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            tensors[f"now.{name}"], tensors[f"best.{name}"] = parameter.detach(), self.best[name]
            tensors |= {f"adam.{name}.{key}": t for key, t in self.optimizer.state[parameter].items()}
        stood: dict[str, Any] = {"key": self.schedule.key, "step": self.step, "total": self.total}
        stood |= {"losses": self.losses, "look": self.look, "seconds": time.perf_counter() - self.began}
        with replacing_file(path) as beside:
            save_file({n: t.cpu().contiguous() for n, t in tensors.items()}, beside, {"shaprune": json.dumps(stood)})


def _affordable(running: _Running) -> int:
    """How many steps fit into the seconds that are left, by the time that a few take, which are then taken back."""
    task, schedule = running.task, running.schedule
    rows = _drawn_until(_TRIED, task.rows, schedule)
    clock = time.perf_counter()
    task.prepare(rows)
    row = (time.perf_counter() - clock) / len(rows)
    clock = time.perf_counter()
    for step in range(_TRIED):
        running.take(_drawn(task.rows, schedule, step))
    each = (time.perf_counter() - clock) / _TRIED + running.look / schedule.every
    running.rewind()
    running.fresh()
    running.step = 0
    left, batch = running.left(), min(schedule.batch_size, len(task.rows))
    if left < each + batch * row:
        raise TooFewSecondsError(
            f"max_seconds={schedule.max_seconds:g} is too little for one step of {batch} examples ({each:.2g} s, and "
            f"{(schedule.max_seconds or 0) - left:.2g} s to prepare it and to measure what it brings); give more "
            "seconds, or leave the step out"
        )
    once = int(left / (each + batch * row))  # where every row is met once at most
    return min(schedule.steps, max(once, int((left - row * len(task.rows)) / each)))


def _drawn_until(steps: int, rows: Tensor, schedule: StepSchedule) -> Tensor:
    """All rows of the first steps, in ascending order."""
    if steps * min(schedule.batch_size, len(rows)) >= 2 * len(rows):
        return rows.sort()[0]
    drawn: Tensor = torch.cat([_drawn(rows, schedule, step) for step in range(steps)])
    return drawn.unique()  # type: ignore[no-any-return]


def _drawn(rows: Tensor, schedule: StepSchedule, step: int) -> Tensor:
    """The rows of a step: those of the step's place in an order of all rows that is new in every pass."""
    size = min(schedule.batch_size, len(rows))
    passes, place = divmod(step, len(rows) // size)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(schedule.seed + 7919 * passes))
    return rows[order[place * size : (place + 1) * size]]
