"""Measuring plans for ``shaprune plan``: the network and its data, read once."""

from __future__ import annotations

from torch import nn

from shaprune.cli.command import say
from shaprune.cli.inputs import device_of, parts_of, read_data, read_model
from shaprune.cli.options.groups import Measured
from shaprune.cli.options.parse import steps_of
from shaprune.errors import InputError
from shaprune.network.layers.open_attention import opened_for
from shaprune.network.removal.surgery import check_fits
from shaprune.pipeline.prune import prune
from shaprune.pipeline.quality import quality_on
from shaprune.pipeline.search import Decision, search_plan
from shaprune.planning.budget import Budget
from shaprune.planning.frontier import Planner
from shaprune.planning.plan import Plan
from shaprune.planning.scores import Scores
from shaprune.recovery.steps import recover


class PlanMeasurement:
    """A network and data on which plans are cut, recovered and judged.

    Recovery takes one part of the held-out examples, quality is accuracy on the rest; fine-tuning takes the training
    part, and the test part is not looked at.

    Args:
        scores: what the plans come from; the network must fit its players.
        options: of the command line, with a network and data.

    Raises:
        InputError: the network is another than the scored one.
    """

    def __init__(self, scores: Scores, options: Measured) -> None:
        assert options.model is not None
        assert options.data is not None
        where = device_of(options.device)
        network = read_model(options.model, options.weights, where, options.seed)
        self.model = opened_for(network, scores.players.layers)
        try:
            check_fits(self.model, scores.players)
        except InputError as error:
            raise InputError(f"these values are of another network than --model: {error}") from error
        self.dataset = read_data(options.data, options.cache, options.preprocessing)
        self.inputs = self.dataset.held_out.inputs[: options.batch_size].to(where)
        self.steps, self.seed = steps_of(options.recover), options.seed
        self.part, checks = parts_of(self.dataset.held_out, options.examples, floored=True)
        assert checks is not None
        self.quality = quality_on(self.model, checks.batches())

    def recovered(self, small: nn.Module, plan: Plan) -> nn.Module:
        """Recover a pruned network."""
        if not self.steps:
            return small
        train = self.dataset.train.batches()
        return recover(small, self.model, plan, self.part.batches(), self.steps, train=train, seed=self.seed)

    def quality_of_plan(self, plan: Plan) -> float:
        """Accuracy on held-out examples once cut and recovered."""
        say(f"measuring {plan.cost['macs']:,.0f} multiply-adds ...")
        return self.quality(self.recovered(prune(self.model, plan, self.inputs), plan))

    def search(self, planner: Planner, budget: Budget) -> Decision:
        """The plan of a budget that must be measured."""
        say(f"searching by measurement on {len(self.dataset.held_out) - len(self.part):,} held-out examples ...")
        return search_plan(
            self.model, planner, budget, example_inputs=self.inputs, quality=self.quality, recover=self.recovered
        )
