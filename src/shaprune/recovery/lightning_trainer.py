"""Training with Lightning, which this file alone imports; no logs, checkpoints or global state stay behind."""

from __future__ import annotations

import copy
import math
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from shaprune.errors import InputError
from shaprune.network.silence import silence

_WARM_UP = 0.1  # share of the steps


class NotFinite(InputError):
    """A loss is NaN or infinite: the training has diverged."""


@dataclass(frozen=True)
class TrainingResult:
    """How a training went.

    Attributes:
        losses: what ``after_epoch`` returned, by epoch; where the training could stop early, the first is the loss
            before it.
        kept: the epoch whose weights were kept, 0 = those before the training; None where the last were.
        diverged: why the training was given up, or None.
        steps: of the optimizer, where steps are counted; a "look" then stands in for an epoch.
        notes: what a reader should know of it.
    """

    losses: tuple[float, ...] = ()
    kept: int | None = None
    diverged: str | None = None
    steps: int | None = None
    notes: tuple[str, ...] = ()


def train(
    model: nn.Module,
    batches: Iterable[Any],
    objective: Callable[[Any], Tensor],
    *,
    n_batches: int,
    epochs: int,
    lr: float,
    weight_decay: float,
    device: torch.device,
    after_epoch: Callable[[], float] | None = None,
    patience: int | None = None,
    optimizer: Optimizer | None = None,
) -> TrainingResult:
    """Minimise ``objective(batch)`` over the parameters of ``model`` with AdamW, warm-up and cosine.

    Args:
        batches: iterated once per epoch.
        n_batches: how many each iteration yields.
        after_epoch: a number per epoch; where given, the weights of the epoch with the lowest are kept.
        patience: epochs without a lower number after which the training stops; needs ``after_epoch``. The weights
            before the training then count as epoch 0, and a training that diverges ends there instead of raising.
        optimizer: in place of AdamW, over parameters of ``model``; its rates fall along the cosine without warm-up.

    Raises:
        InputError: the loss, or that number, is NaN or infinite: the message names the epoch.
    """
    losses: list[float] = []
    best_state, kept, diverged = None, None, None
    with silence():  # its loggers come with it
        import lightning.pytorch as pl
        from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    with silence("lightning"):
        total = epochs * n_batches
        warm_up = 0 if optimizer is not None else max(1, round(_WARM_UP * total))

        def rate(step: int) -> float:
            if step < warm_up:
                return (step + 1) / warm_up
            return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, total - warm_up)))

        def look(epoch: int) -> None:
            nonlocal best_state, kept
            assert after_epoch is not None
            loss = float(_finite(torch.tensor(after_epoch()), "validation loss", epoch, lr))
            if loss < min(losses, default=math.inf):
                best_state, kept = copy.deepcopy(model.state_dict()), epoch
            losses.append(loss)

        class Task(pl.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def training_step(self, batch: Any, index: int) -> Tensor:
                return _finite(objective(batch), "loss", self.current_epoch + 1, lr)

            def on_train_epoch_end(self) -> None:
                epoch = self.current_epoch + 1
                if after_epoch is not None:
                    look(epoch)
                if patience is not None and epoch - (kept or 0) >= patience:
                    self.trainer.should_stop = True

            def configure_optimizers(self) -> Any:
                used = optimizer or torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
                scheduler = torch.optim.lr_scheduler.LambdaLR(used, rate)
                return {"optimizer": used, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

        trainer = pl.Trainer(
            accelerator="gpu" if device.type == "cuda" else device.type,
            devices=[device.index or 0] if device.type == "cuda" else 1,
            max_epochs=epochs,
            plugins=[LightningEnvironment()],  # one process here, also inside a cluster's job
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        if patience is not None:
            look(0)
        try:
            with interruptible():
                trainer.fit(Task(), train_dataloaders=batches)
        except NotFinite as error:
            if patience is None:
                raise
            diverged = str(error)
    if best_state is not None:
        model.load_state_dict(best_state)
    return TrainingResult(tuple(losses), kept, diverged)


def _finite(loss: Tensor, what: str, epoch: int, lr: float) -> Tensor:
    if not bool(torch.isfinite(loss)):
        when = f"in epoch {epoch}" if epoch else "before the first epoch"
        raise NotFinite(
            f"the {what} is {float(loss)} {when}; lower lr (now {lr:g}), or look for NaN in the data and the weights"
        )
    return loss


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C stays KeyboardInterrupt: Lightning turns it into SystemExit and ignores the signal from then on."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from stop
        raise
    finally:
        if threading.current_thread() is threading.main_thread() and handler is not None:
            signal.signal(signal.SIGINT, handler)
