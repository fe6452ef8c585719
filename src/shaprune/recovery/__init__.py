"""Recovery of quality after surgery: refit, batch-norm recalibration, blocks, distillation, fine-tuning."""

from shaprune.recovery.blocks import Blocks
from shaprune.recovery.distillation import Distill
from shaprune.recovery.finetune import Finetune
from shaprune.recovery.steps import Batchnorm, Refit
from shaprune.recovery.training import Training, fit

__all__ = ["Batchnorm", "Blocks", "Distill", "Finetune", "Refit", "Training", "fit"]
