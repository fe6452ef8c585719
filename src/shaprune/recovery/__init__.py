"""Recovery of quality after surgery: refit, batch-norm recalibration, fine-tuning, distillation."""

from shaprune.recovery.finetune import Finetune
from shaprune.recovery.steps import Batchnorm, Refit
from shaprune.recovery.training import Training, fit

__all__ = ["Batchnorm", "Finetune", "Refit", "Training", "fit"]
