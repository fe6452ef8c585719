"""Measuring plans for ``shaprune plan``: the network and its data, read once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from shaprune.cli.command import say
from shaprune.cli.inputs import device_of, read_data, read_model
from shaprune.cli.options.shared import TRAINED_STEPS
from shaprune.errors import InputError
from shaprune.network.removal.surgery import check_fits
from shaprune.pipeline.prune import prune
from shaprune.pipeline.search import Decision, decide, quality_on
from shaprune.planning.budget import Budget
from shaprune.planning.frontier import Planner
from shaprune.planning.plan import Plan
from shaprune.planning.scores import Scores
from shaprune.recovery.steps import recover


class PlanMeasurement:
    """A network and data on which plans are cut, recovered and judged.

    Recovery takes training examples, quality is accuracy on held-out ones; the test examples are not looked at, but
    that latency is timed on a batch of their shape.

    Args:
        scores: what the plans come from; the network must fit its players.
        model, weights, data, cache, device, seed: options of the command line.
        steps: of recovery.
        examples: training examples for the steps that train nothing.
        batch_size: examples per forward pass that is timed.

    Raises:
        InputError: the network is another than the scored one.
    """

    def __init__(
        self,
        scores: Scores,
        model: str,
        weights: Path | None,
        data: str,
        *,
        cache: Path | None,
        device: str | None,
        steps: Sequence[str],
        examples: int,
        batch_size: int,
        seed: int,
    ) -> None:
        where = device_of(device)
        self.model = read_model(model, weights, where, seed)
        try:
            check_fits(self.model, scores.players)
        except InputError as error:
            raise InputError(f"these values are of another network than --model: {error}") from error
        self.dataset = read_data(data, cache)
        self.inputs = self.dataset.held_out.inputs[:batch_size].to(where)
        self.steps, self.examples, self.seed = steps, examples, seed
        self.quality = quality_on(self.model, self.dataset.held_out.batches())

    def mend(self, small: nn.Module, plan: Plan) -> nn.Module:
        """Recover a pruned network."""
        for step in self.steps:
            part = self.dataset.train if step in TRAINED_STEPS else self.dataset.train.take(self.examples)
            small = recover(small, self.model, plan, part.batches(), (step,), seed=self.seed)
        return small

    def quality_of_plan(self, plan: Plan) -> float:
        """Accuracy on held-out examples once cut and recovered."""
        say(f"measuring {plan.cost['macs']:,.0f} multiply-adds ...")
        return self.quality(self.mend(prune(self.model, plan, self.inputs), plan))

    def decide(self, planner: Planner, budget: Budget) -> Decision:
        """The plan of a budget that must be measured."""
        say(f"searching by measurement on {len(self.dataset.held_out):,} held-out examples ...")
        return decide(self.model, planner, budget, example_inputs=self.inputs, quality=self.quality, mend=self.mend)
