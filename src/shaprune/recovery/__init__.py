"""Recovery of quality after surgery: refit, batch-norm recalibration, fine-tuning, distillation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shaprune.names.lazy import resolve_on_use

if TYPE_CHECKING:
    from shaprune.recovery.finetune import Finetune as Finetune
    from shaprune.recovery.steps import Batchnorm as Batchnorm
    from shaprune.recovery.steps import Refit as Refit
    from shaprune.recovery.training import Training as Training
    from shaprune.recovery.training import fit as fit

_HOMES = {
    "Batchnorm": "shaprune.recovery.steps",
    "Finetune": "shaprune.recovery.finetune",
    "Refit": "shaprune.recovery.steps",
    "Training": "shaprune.recovery.training",
    "fit": "shaprune.recovery.training",
}
__all__ = sorted(_HOMES)

if not TYPE_CHECKING:
    __getattr__ = resolve_on_use(__name__, _HOMES)


def __dir__() -> list[str]:
    return __all__
