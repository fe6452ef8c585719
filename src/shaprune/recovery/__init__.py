"""Recovery of quality after surgery: refit, batch-norm recalibration, fine-tuning, distillation."""

from shaprune.recovery.distillation import Distill
from shaprune.recovery.finetune import Finetune
from shaprune.recovery.steps import Batchnorm, Refit
from shaprune.recovery.training import Training, fit

__all__ = ["Batchnorm", "Distill", "Finetune", "Refit", "Training", "fit"]
