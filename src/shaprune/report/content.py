"""Content of a report, gathered before anything is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shaprune.errors import InputError
from shaprune.planning.limits import Limits
from shaprune.planning.plan import Plan
from shaprune.planning.scores import Scores
from shaprune.planning.sensitivity_curves import Sensitivity
from shaprune.values.redundancy import Redundancy

if TYPE_CHECKING:
    from shaprune.deploy.measure import Measurement
    from shaprune.pipeline.feature_maps import FeatureMaps
    from shaprune.report.removal_curves import Curves


@dataclass(frozen=True, eq=False)
class Content:
    """The content of a report; whatever is None or empty is left out.

    Attributes:
        title: the heading.
        scores: the values.
        plan: who stays.
        curves: accuracy as players leave.
        measurements: name -> network, measured; the dense one first, the pruned one last.
        setting: how latency was measured.
        seconds: wall time per stage.
    """

    title: str
    scores: Scores
    plan: Plan | None = None
    curves: Curves | None = None
    measurements: Mapping[str, Measurement] = field(default_factory=dict)
    setting: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)

    def check_plan(self) -> None:
        """Check that the plan is about the players that were scored.

        Raises:
            InputError: it is not.
        """
        if self.plan is not None and self.plan.players.names != self.scores.players.names:
            raise InputError("the plan and the values belong to different players; make the plan from these values")


@dataclass(frozen=True, eq=False)
class Evidence:
    """What only the interactive report shows.

    Attributes:
        sensitivity: what each group loses along its ranking; predicts the quality of every budget.
        frontiers: name -> what ``shaprune plan --sweep`` wrote: ours first, then rivals.
        redundancies: group -> which of its players can replace each other.
        look: what the network sees.
        within: what every plan of the slider must leave.
    """

    sensitivity: Sensitivity | None = None
    frontiers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    redundancies: Mapping[str, Redundancy] = field(default_factory=dict)
    look: FeatureMaps | None = None
    within: Limits = field(default_factory=Limits)
