"""A network as a game: players are units, the worth of a coalition is the quality with only these units kept.

Masks stand where they do what removal does (see `shaprune.network.removal.masks`), so the worth of a coalition is the
worth of the network after surgery. Rows of a batch carry their own coalition and their own example.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from shaprune.errors import GameError, InputError, check_choice
from shaprune.network.batches import Forward
from shaprune.network.borrow import borrowed, device_of
from shaprune.network.discovery.model_support import check_model
from shaprune.network.disk_buffer import DEFAULT_MAX_MEMORY as DEFAULT_MAX_MEMORY
from shaprune.network.forward.calibration import Calibration
from shaprune.network.forward.rows import Rows
from shaprune.network.forward.runner import Runner
from shaprune.network.forward.suffix import SuffixRunner
from shaprune.network.game.evaluation import WorthEvaluator, evaluate_coalitions, evaluate_walks
from shaprune.network.game.fingerprint import few_digits, fingerprint_of, told
from shaprune.network.game.mask_derivatives import WITHOUT_DERIVATIVES, MaskDerivatives
from shaprune.network.game.reached_outputs import check_reached
from shaprune.network.game.subset_worth import Only, restrict_to_subset
from shaprune.network.game.worths import AnyWorth, Evaluate, SetWorth, is_built_in, reference_for, resolve_worth
from shaprune.network.precision import RowPrecision
from shaprune.network.removal.mask_sites import mask_sites
from shaprune.network.removal.masks import masked
from shaprune.network.removal.surgery import check_fits
from shaprune.players.players import Group, Players
from shaprune.values.games.arrays import Coalitions, Examples, Orders, Start, Worths
from shaprune.values.games.checks import describe_coalition
from shaprune.values.games.game import Game
from shaprune.values.games.witness import question_for

MOST_TOLD = 1 << 10  # examples by whose outputs a network is known again


class NetworkGame(Game):
    """The game of a trained network.

    Args:
        model: the dense network; scored in eval mode, it comes back untouched.
        players: from `find_players` on this model.
        data: an iterable of batches ``(inputs, targets)``, read once; or a `Calibration` shared between games. Not used
            by `Evaluate`.
        worth: ``"accuracy"``, ``"cross_entropy"``, ``"margin"``, ``"perplexity"``, ``"fidelity"``, ``"kl"``,
            ``"squared_error"``, ``"absolute_error"``; a callable ``(outputs, targets) -> (R,)``; a torchmetrics metric
            or `SetWorth`, which are asked once per coalition with all examples; `Only` around one of these; or
            `Evaluate`.
        group: name(s) of the groups that play, the others stay whole; None = all players at once.
        forward: ``(model, inputs) -> outputs`` where the model is not simply called; then the model is run whole.
        max_memory: bytes that rows, cached activations and examples may take; what is more of the last two lies in a
            temporary file, with the same bits. Set worths take a quarter more, and never less than the outputs of all
            examples.
        precision: in which what lies behind the masks is computed, ``"float32"``, ``"bfloat16"`` or
            ``"bfloat16-channels-last"``, see `shaprune.network.precision`.

    Attributes:
        separable: whether single examples have worths; not for set worths, `Evaluate`, and networks in which the
            examples of a batch meet: ``examples`` is then refused.
        inseparable_because: why they have none, or None where they do.
        repeatable: True for worths of ours on networks that torch.fx takes apart.
        labels: (N,) class of each example where targets are one whole number per example.

    Raises:
        InputError: unusable data, targets, worth, group or precision.
        GameError: outputs or worths that are NaN or infinite: which layer, which coalition.
    """

    def __init__(
        self,
        model: nn.Module,
        players: Players,
        data: Iterable[Any] | Calibration | None,
        worth: AnyWorth | Only | Evaluate = "accuracy",
        group: str | Sequence[str] | None = None,
        *,
        forward: Forward | None = None,
        max_memory: int = DEFAULT_MAX_MEMORY,
        precision: RowPrecision = "float32",
    ) -> None:
        if max_memory < 1:
            raise InputError(f"max_memory is {max_memory}; give a number of bytes, such as 1 << 30")
        check_choice("precision", precision, get_args(RowPrecision))
        check_model(model)
        check_fits(model, players)
        wanted = [group] if isinstance(group, str) else group
        if wanted is not None and len(set(wanted)) != max(len(wanted), 1):
            raise InputError(f"group is {group!r}; name at least one group, and each only once")
        self.groups: Sequence[Group] = players.groups if wanted is None else [players.group(name) for name in wanted]
        self.model = model
        self.n_players = sum(len(g) for g in self.groups)
        self.sites = mask_sites(players, self.groups, device_of(model))
        self.whole_model = worth.function if isinstance(worth, Evaluate) else None
        self.precision = precision
        self._fingerprint: str | None = None
        if isinstance(worth, Evaluate):
            if precision != "float32":
                raise InputError(
                    f"Evaluate runs the model itself; use torch.autocast there, not precision={precision!r}"
                )
            self.inseparable_because: str | None = "worth 'evaluate' is one number over all examples"
            self.separable = False
            return
        if data is None:
            raise InputError("data is None; give an iterable of batches (inputs, targets)")
        calibration = Calibration.of(model, data, forward, max_memory=max_memory)
        if calibration.model is not model:
            raise InputError("the Calibration given as data belongs to another model; make one of this model")
        check_reached(calibration, players, self.groups)
        self.calibration, judged_by = restrict_to_subset(calibration, worth)
        self.n_examples = self.calibration.n_examples
        self.labels = self.calibration.labels
        self._judge_by(judged_by, None, max_memory)

    def judged_by(self, worth: AnyWorth) -> NetworkGame:
        """The same game with another worth, on the same examples; both share what they have computed of the network.

        Raises:
            InputError, GameError: as the constructor.
        """
        other = copy.copy(self)
        other._fingerprint = None
        other._judge_by(worth, self.evaluator.rows, self.evaluator.rows.max_memory)
        return other

    def at(self, precision: RowPrecision) -> NetworkGame:
        """The same game in another precision.

        Raises:
            InputError: as the constructor.
        """
        other = copy.copy(self)
        other.precision, other._fingerprint = precision, None
        other._judge_by(self.evaluator.worth, None, self.evaluator.rows.max_memory)
        return other

    def part(self, examples: NDArray[np.int64]) -> NetworkGame:
        """The same game on some of the examples, which are counted anew; this one keeps nothing of it.

        Raises:
            InputError, GameError: as the constructor.
        """
        other = copy.copy(self)
        other.calibration, other._fingerprint = self.calibration.part(examples), None
        other.n_examples, other.labels = other.calibration.n_examples, other.calibration.labels
        other._judge_by(self.evaluator.worth, None, self.evaluator.rows.max_memory)
        return other

    def _judge_by(self, worth: AnyWorth, rows: Rows | None, max_memory: int) -> None:
        chosen, calibration = resolve_worth(worth), self.calibration
        reference, factor = reference_for(chosen, calibration.targets, calibration.outputs)
        rows = Rows(calibration, self.sites, max_memory, self.precision) if rows is None else rows
        self.evaluator = WorthEvaluator(rows, chosen, reference, ", ".join(g.name for g in self.groups[:3]), factor)
        self.inseparable_because = None
        if isinstance(chosen, SetWorth):
            self.inseparable_because = f"worth {chosen.name!r} is one number over all examples"
        elif calibration.meet:
            self.inseparable_because = "the examples of a batch meet in this model"
        self.separable = self.inseparable_because is None
        self._known_slopes: MaskDerivatives | None = None
        self.repeatable = is_built_in(chosen) and isinstance(rows.runner, SuffixRunner)
        if isinstance(chosen, SetWorth):
            with borrowed(self.model), torch.no_grad():
                self.evaluator.check_dense()

    @property
    def refuted(self) -> tuple[tuple[str, str], ...]:
        """Fast ways to run rows that are not used, and how they answer otherwise than the plain masked network."""
        return () if self.whole_model is not None else tuple(self.evaluator.rows.refuted)

    @property
    def runner(self) -> Runner:
        """What runs the rows."""
        return self.evaluator.rows.runner

    @property
    def whole_because(self) -> str | None:
        """Why the whole model is run for every coalition, or None where only the part behind the mask is."""
        return None if self.whole_model is not None else self.runner.because

    def why_flat(self) -> str:
        """Name the likely cause where all values are the same: what removing every player changes."""
        both = np.stack([np.ones(self.n_players, bool), np.zeros(self.n_players, bool)])
        try:
            dense, none = self(both)
        except GameError as error:
            return f"without any of its players there is no worth ({error})"
        asked = None if self.whole_model is not None else self.evaluator.rows.asked
        if dense == none and asked is not None and asked.moves_outputs() is False:
            return (
                "the output that is judged stays the same without all of these players: nothing behind them uses what "
                "they give (units that are always zero?), or they reach another output only (choose it by forward=...)"
            )
        if dense == none:
            return f"the worth is {dense:g} with and without all of these players; take another worth or data"
        return "each of these players is worth the same"

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the network, the players, the examples and the worth, see `fingerprint_of`.

        Of `Evaluate`, whose data are its own, only the name of the function is known.
        """
        if self._fingerprint is None:
            evaluator = None if self.whole_model is not None else self.evaluator
            data = [] if evaluator is None else [self.calibration.inputs]
            if evaluator is not None and evaluator.worth.reference == "targets":
                data.append(evaluator.reference)
            functions: list[object] = (
                [self.whole_model] if evaluator is None else [evaluator.worth, self.calibration.forward]
            )
            functions += [] if self.precision == "float32" else [self.precision]
            self._fingerprint = fingerprint_of(self.model, self.sites, data, functions, n_players=self.n_players)
        return self._fingerprint

    @property
    def dense(self) -> NDArray[np.float64]:
        if self.whole_model is not None:
            return np.zeros(0)
        examples = question_for(self).examples
        rows = np.arange(min(self.n_examples, MOST_TOLD)) if examples is None else np.unique(examples)
        return told(self.calibration.outputs[torch.from_numpy(rows).to(self.calibration.outputs.device)])

    @property
    def rough(self) -> bool:
        return self.precision != "float32" or few_digits(self.model)

    def __call__(self, coalitions: Coalitions, examples: Examples | None = None) -> Worths:
        coalitions = self.checked_rows(coalitions, examples)
        if self.whole_model is not None:
            return np.array([self._evaluate(row) for row in coalitions], dtype=np.float64)
        return evaluate_coalitions([self.evaluator], coalitions, examples)[0]

    def walk(self, orders: Orders, examples: Examples | None = None, start: Start | None = None) -> Worths:
        if self.whole_model is not None:
            return super().walk(orders, examples, start)
        return evaluate_walks([self.evaluator], orders, examples, self.checked_start(orders, examples, start))[0]

    def rounding(self, worth: float) -> float:
        """Rounding error of a worth of this size, see `WorthEvaluator.rounding`."""
        least = super().rounding(worth)
        return least if self.whole_model is not None else max(least, self.evaluator.rounding(worth))

    @property
    def derivative_price(self) -> int:
        """2: a pass forward and one back.

        Raises:
            InputError: the worth has no derivatives, or they do not fit ``max_memory``; see `MaskDerivatives`.
        """
        self._slopes()
        return 2

    def derivatives(self, coalitions: Coalitions, examples: Examples | None = None) -> Worths:
        """Worths and their derivatives by the masks; raises as `derivative_price`."""
        return self._slopes().of(self.checked_rows(coalitions, examples), examples)

    def _slopes(self) -> MaskDerivatives:
        if self.inseparable_because is not None:
            raise InputError(
                f"{self.inseparable_because}, so that there are no derivatives here; {WITHOUT_DERIVATIVES}"
            )
        if self._known_slopes is None:
            self._known_slopes = MaskDerivatives(self.evaluator)
        return self._known_slopes

    # -- what may be asked ----------------------------------------------------------------------------------------

    def checked_rows(self, coalitions: Coalitions, examples: Examples | None) -> Coalitions:
        """Coalitions (R, n_players) bool.

        Raises:
            InputError: another shape; examples of another length, or where the worth has none.
        """
        coalitions = np.asarray(coalitions, dtype=bool)
        if coalitions.ndim != 2 or coalitions.shape[1] != self.n_players:
            raise InputError(f"coalitions have shape {coalitions.shape}; this game needs (R, {self.n_players})")
        self._check_separable(examples)
        if examples is not None and np.shape(examples) != (len(coalitions),):
            raise InputError(f"examples have shape {np.shape(examples)}; give one for each of {len(coalitions)} rows")
        return coalitions

    def checked_start(self, orders: Orders, examples: Examples | None, start: Start | None) -> Start | None:
        """The coalition (n_players,) bool that walks leave from.

        Raises:
            InputError: another shape, orders that name a player outside; examples where the worth has none.
        """
        self._check_separable(examples)
        if start is None:
            return None
        start = np.asarray(start, dtype=bool)
        if start.shape != (self.n_players,):
            raise InputError(f"start has shape {start.shape}; this game needs ({self.n_players},)")
        if not start[orders].all():
            raise InputError(f"player {orders[~start[orders]][0]} is to leave and is not in start; drop it from orders")
        return start

    def _check_separable(self, examples: Examples | None) -> None:
        if examples is not None and self.inseparable_because is not None:
            raise InputError(f"{self.inseparable_because}, and has none for single ones; ask with examples=None")

    def _evaluate(self, kept: NDArray[np.bool_]) -> float:
        assert self.whole_model is not None
        mask = torch.from_numpy(kept[None]).to(device_of(self.model), torch.float32)
        with borrowed(self.model), masked(self.model, self.sites, mask):
            worth = float(self.whole_model(self.model))
        if not np.isfinite(worth):
            raise GameError(f"evaluate(model) returned {worth} for {describe_coalition(kept)}")
        return worth
