"""Stopping rules for ``estimate(..., stop=...)``. They combine: ``stderr_below(0.01) | seconds(60)``.

A rule is asked after every chunk of the first sweep over the examples and after every later sweep. It gives its reason,
and the reason is noted in ``Values.stopped_by``. Any function ``Values -> reason or None`` is a rule as well.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import and_, or_
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shaprune.errors import InputError, check_choice
from shaprune.values.certificate import check_eps, count_undecided, eps_of, near_cut
from shaprune.values.intervals import quantile_of
from shaprune.values.result import Values

ABOUT_ERRORS = {"the standard error", "the relative error", "the median error", "the cut"}  # kinds of rules
Reason = Callable[[Values], "str | None"]
Undecided = Callable[[Values], "NDArray[np.bool_] | None"]
Measures = Callable[[Values], "Mapping[str, float]"]


def _all_players(values: Values) -> None:
    return None


def _nothing(values: Values) -> Mapping[str, float]:
    return {}


@dataclass(frozen=True)
class Check:
    """A rule at work on one estimate.

    Attributes:
        reason: values so far -> the reason to stop, or None to go on.
        undecided: values so far -> (n,) True for the players that must still be sampled; None = all.
        measures: values -> numbers on how far the rule is met, for ``Values.diagnostics``.
    """

    reason: Reason
    undecided: Undecided = _all_players
    measures: Measures = _nothing

    def noted(self, looks: list[int]) -> Check:
        """The same check, which notes the evaluations of every look that it takes."""

        def reason(values: Values) -> str | None:
            looks.append(values.n_evaluations)
            return self.reason(values)

        return replace(self, reason=reason)


@dataclass(frozen=True)
class Rule:
    """When to stop.

    Attributes:
        name: with its parameters, as noted in the result.
        kinds: what the rule, or its parts, look at; no kind may occur twice in a combination.
        begin: number of players -> a fresh `Check`.
        share: number of players of all games together -> the rule for one of them, of a rule whose confidence is shared
            out among players.
        noted: what is noted in ``Values.options``.
    """

    name: str
    kinds: tuple[str, ...]
    begin: Callable[[int], Check]
    share: Callable[[int], Rule] | None = None
    noted: Mapping[str, Any] = field(default_factory=dict)

    def among(self, players: int) -> Rule:
        """The rule for one of several games, so that its confidence holds for all their players together."""
        return self if self.share is None else self.share(players)

    def __and__(self, other: Rule) -> Rule:
        """Stop once both rules would; each is asked every time."""
        return self._with(other, "&", all)

    def __or__(self, other: Rule) -> Rule:
        """Stop as soon as one rule would; the reason names the ones that did."""
        return self._with(other, "|", any)

    def _with(self, other: Rule, sign: str, enough: Callable[[list[bool]], bool]) -> Rule:
        if not isinstance(other, Rule):
            raise InputError(f"{self.name} {sign} {type(other).__name__}: only stopping rules combine with & and |")
        twice = set(self.kinds) & set(other.kinds)
        if twice:
            raise InputError(
                f"the stopping rules {self.name} and {other.name} conflict: both are about {', '.join(sorted(twice))}; "
                "give one of them"
            )

        def joined(names: list[str]) -> str:
            return f" {sign} ".join(f"({name})" if sign == "&" and " | " in name else name for name in names)

        def begin(n: int) -> Check:
            parts = [self.begin(n), other.begin(n)]

            def reason(values: Values) -> str | None:
                reasons = [part.reason(values) for part in parts]
                return joined(list(filter(None, reasons))) if enough([bool(r) for r in reasons]) else None

            def undecided(values: Values) -> NDArray[np.bool_] | None:
                masks = [mask for part in parts if (mask := part.undecided(values)) is not None]
                needs_all = sign == "&" and len(masks) < 2  # the other rule still looks at all players
                return None if needs_all or not masks else masks[0]

            def measures(values: Values) -> Mapping[str, float]:
                return {**parts[0].measures(values), **parts[1].measures(values)}

            return Check(reason, undecided, measures)

        def share(players: int) -> Rule:
            return self.among(players)._with(other.among(players), sign, enough)

        names, noted = joined([self.name, other.name]), {**self.noted, **other.noted}
        return Rule(names, self.kinds + other.kinds, begin, share, noted)


def evaluations(limit: int) -> Rule:
    """Stop once so many (coalition, example) rows have been paid (or a chunk more)."""
    _above_zero("evaluations", limit)
    return _plain(f"evaluations({limit:.0f})", "evaluations", lambda values: values.n_evaluations >= limit)


def evaluations_per_player(limit: int) -> Rule:
    """The same for so many rows for each player, so that groups of a network are paid for by their size."""
    _above_zero("evaluations_per_player", limit)
    name = f"evaluations_per_player({limit:.0f})"

    def begin(n: int) -> Check:
        return Check(lambda values: name if values.n_evaluations >= limit * n else None)

    return Rule(name, ("evaluations",), begin)


def seconds(limit: float) -> Rule:
    """Stop after so many seconds. The same seed then gives other bits from run to run."""
    _above_zero("seconds", limit)
    name = f"seconds({limit:g})"

    def begin(n: int) -> Check:
        end = time.monotonic() + limit
        return Check(lambda values: name if time.monotonic() >= end else None)

    return Rule(name, ("seconds",), begin)


def stderr_below(limit: float) -> Rule:
    """Stop once every player's standard error is below ``limit`` (in units of the worth)."""
    _above_zero("stderr_below", limit)
    return _plain(f"stderr_below({limit})", "the standard error", lambda values: bool(np.all(values.stderr < limit)))


def relative_error_below(limit: float) -> Rule:
    """Stop once the expected ||value - truth|| / ||value||, judged by the standard errors, is below ``limit``."""
    _above_zero("relative_error_below", limit)
    return _plain(
        f"relative_error_below({limit})",
        "the relative error",
        lambda values: bool(np.linalg.norm(values.stderr) <= limit * np.linalg.norm(values.value)),
    )


def median_error_below(limit: float) -> Rule:
    """Stop once half of the players have a standard error of at most ``limit`` times their value.

    Players whose value is exactly 0 without any doubt (dead units) are left out.
    """
    _above_zero("median_error_below", limit)

    def holds(values: Values) -> bool:
        size = np.abs(values.value)
        alive = (size > 0) | (values.stderr > 0)
        return bool(2 * np.count_nonzero(values.stderr[alive] <= limit * size[alive]) >= np.count_nonzero(alive))

    return _plain(f"median_error_below({limit})", "the median error", holds)


def rank_stable(correlation: float = 0.99, looks: int = 3) -> Rule:
    """Stop once the ranking has kept a Spearman correlation with the look before, for so many looks in a row."""
    if not 0 < correlation <= 1 or looks < 1:
        raise InputError(f"rank_stable({correlation}, {looks}): correlation must be in (0, 1] and looks at least 1")
    name = f"rank_stable({correlation:g}, {looks})"

    def begin(n: int) -> Check:
        state: dict[str, Any] = {"rank": None, "run": 0}

        def reason(values: Values) -> str | None:
            rank = np.empty(n)
            rank[values.ranking()] = np.arange(n)
            before, state["rank"] = state["rank"], rank
            if before is not None:
                spearman = 1 - 6 * ((rank - before) ** 2).sum() / max(n * (n**2 - 1), 1)
                state["run"] = state["run"] + 1 if spearman >= correlation else 0
            return name if state["run"] >= looks else None

        return Check(reason)

    return Rule(name, ("the ranking",), begin)


def cut_settled(remove: int | float, confidence: float = 0.95) -> Rule:
    """Stop once it is settled who are the ``remove`` least valuable players; only players near the cut go on.

    A player is settled where its value lies beyond the cut (the middle between the last that leaves and the first that
    stays) by more than its standard error allows; the confidence holds for all players together (Bonferroni) at one
    look, and looks are repeated, so it is nominal; `certified_cut` holds at all looks. Players of equal value at the
    cut never settle: combine with a limit, ``cut_settled(0.5) | seconds(60)``, or give ``max_evaluations``. After
    Neuron Shapley (Ghorbani & Zou 2020).

    Args:
        remove: how many players leave; a fraction of them below 1.
        confidence: that the set below the cut is right.

    Raises:
        InputError: a number that leaves no player on one side of the cut.
    """
    quantile_of(confidence)
    name = f"cut_settled({_removed('cut_settled', remove)}, {confidence:g})"

    def begin(n: int) -> Check:
        leaving = _number_leaving(name, remove, n)
        reach = quantile_of(1 - 2 * (1 - confidence) / (2 * n))

        def undecided(values: Values) -> NDArray[np.bool_]:
            ranked = np.sort(values.value)
            cut = (ranked[leaving - 1] + ranked[leaving]) / 2
            return np.asarray(np.abs(values.value - cut) <= reach * values.stderr)

        return Check(lambda values: None if undecided(values).any() else name, undecided)

    return Rule(name, ("the cut",), begin)


def certified_cut(remove: int | float, eps: float | None = None, confidence: float = 0.95) -> Rule:
    """Stop once it is certain that no removed player is worth more than a kept one by more than ``eps``.

    The confidence holds for all players and all looks together, by confidence sequences (`shaprune.values.intervals`);
    in `score` for the players of all groups. Only players near the cut go on. Ties are no obstacle: a rule with an
    ``eps`` is met in the end, but may take long; combine it with a limit, ``certified_cut(0.5) | seconds(60)``. How far
    it was met stands in ``Values.diagnostics``: ``undecided`` players, and ``eps``.

    Args:
        remove: how many players leave; a fraction of them below 1.
        eps: the difference in worth that does not matter; None = a tenth of the median size of a value.
        confidence: that no removed player is worth more than a kept one by more than eps.

    Raises:
        InputError: a number that leaves no player on one side of the cut; an eps of 0 or below.
    """
    quantile_of(confidence)
    check_eps(eps)
    given = "" if eps is None else f", eps={eps:g}"
    name = f"certified_cut({_removed('certified_cut', remove)}{given}, confidence={confidence:g})"

    def of(players: int | None) -> Rule:
        return Rule(name, ("the cut",), lambda n: begin(n, players or n), of, noted)

    def begin(n: int, players: int) -> Check:
        leaving = _number_leaving(name, remove, n)

        def found(values: Values) -> tuple[NDArray[np.float64], NDArray[np.bool_], float]:
            leaves = np.zeros(n, dtype=bool)
            leaves[values.ranking()[:leaving]] = True
            return values.confidence_sequence(confidence, players), leaves, eps_of(values.value, eps)

        def measures(values: Values) -> Mapping[str, float]:
            ends, leaves, near = found(values)
            return {"undecided": float(count_undecided(ends, leaves, near)), "eps": near}

        def reason(values: Values) -> str | None:
            return None if count_undecided(*found(values)) else name

        return Check(reason, lambda values: near_cut(values.value, *found(values)), measures)

    noted = {"certified_cut": {"eps": eps, "confidence": confidence}}
    return of(None)


def _removed(rule: str, remove: int | float) -> str:
    if isinstance(remove, bool) or not remove > 0:
        raise InputError(f"{rule}({remove!r}): give how many players leave, or a fraction of them below 1")
    return f"{remove:g}"


def _number_leaving(rule: str, remove: int | float, n: int) -> int:
    leaving = round(remove * n) if remove < 1 else int(remove)
    if not 0 < leaving < n:
        raise InputError(f"{rule} lets {leaving} of {n} players leave; at least one must leave and one must stay")
    return leaving


RULES: dict[str, Callable[..., Rule]] = {
    "evaluations": evaluations,
    "evaluations_per_player": evaluations_per_player,
    "seconds": seconds,
    "stderr_below": stderr_below,
    "relative_error_below": relative_error_below,
    "median_error_below": median_error_below,
    "rank_stable": rank_stable,
    "cut_settled": cut_settled,
    "certified_cut": certified_cut,
}


def rule_of(text: str) -> Rule:
    """A rule from text: ``"cut_settled(0.5) | seconds(60)"``; ``&`` binds closer than ``|``, and there are no brackets.

    Numbers may have names: ``"certified_cut(0.5, confidence=0.9)"``.

    Raises:
        InputError: an unknown rule (with the nearest), numbers that it does not take, or rules that conflict.
    """
    either = [[_one(part) for part in both.split("&")] for both in text.split("|")]
    return reduce(or_, (reduce(and_, rules) for rules in either))


def _one(text: str) -> Rule:
    match = re.fullmatch(r"\s*(\w+)\s*\(([^()]*)\)\s*", text)
    if match is None:
        raise InputError(f"{text.strip()!r} is no stopping rule; write NAME(NUMBER), such as seconds(60)")
    check_choice("stopping rule", match[1], RULES)
    try:
        parts = [x.rpartition("=") for x in match[2].split(",")]
        named = {name.strip(): float(number) for name, equals, number in parts if equals}
        return RULES[match[1]](*(float(number) for _, equals, number in parts if not equals), **named)
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{text.strip()!r} cannot be read ({error}); write NAME(NUMBER), such as seconds(60)"
        ) from None


def started(stop: Rule | Reason | None, n: int) -> Check | None:
    """The check of a rule, or of a plain function, for a game of ``n`` players.

    Raises:
        InputError: neither a rule nor a function.
    """
    if stop is None or isinstance(stop, Check):
        return stop
    if isinstance(stop, Rule):
        return stop.begin(n)
    if callable(stop):
        return Check(stop)
    raise InputError(f"stop is a {type(stop).__name__}; give a rule of sp.stopping, such as seconds(60)")


def _plain(name: str, kind: str, holds: Callable[[Values], bool]) -> Rule:
    return Rule(name, (kind,), lambda n: Check(lambda values: name if holds(values) else None))


def _above_zero(rule: str, limit: float) -> None:
    if not limit > 0:
        raise InputError(f"{rule}({limit}): the limit of a stopping rule must be above 0")
