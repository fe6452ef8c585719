"""The curves benchmark: the orders of all contenders on all groups of several networks, and what quality they keep.

Two questions are asked of the same values. *Layer by layer*: the players of one group leave, the other groups stay
whole. *Network-wide*: the players of all groups leave in one order, by value; the most valuable player of every group
leaves last, so that no layer is empty before all are. Numbers of rivals that have no common unit across layers are
divided by their group's mean first (``SCALED``); raw, they would make weaker rivals.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from shaprune.builtin.demo_training import train
from shaprune.builtin.splits import Dataset, Split
from shaprune.errors import InputError
from shaprune.experiments.contenders import Contender, Contest, players_of
from shaprune.experiments.removal_curves import Curve, band, mean_and_reach, quality, removal_curves, removal_order
from shaprune.network.discovery.find_players import find_players
from shaprune.network.forward.calibration import Calibration
from shaprune.players.players import Players
from shaprune.values.result import Values

NETWORK_WIDE = "network-wide"
SHARES = (0.5, 0.7, 0.8, 0.9)  # of the players removed, at which accuracies are tabled
SCALED = ("weight_norm", "weight_norm_l1", "bn_scale", "fpgm", "sensitivity", "apoz", "activation_mean")


@dataclass(frozen=True, eq=False)
class Entry:
    """What one contender did on one network.

    Attributes:
        contender: who.
        values: of the players, in player order.
        seconds: wall time of the scoring.
        curve: along its order; None until it is measured.
    """

    contender: Contender
    values: Values
    seconds: float
    curve: Curve | None = None


def score_all(
    contest: Contest, contenders: Sequence[Contender], *, seed: int = 0
) -> tuple[dict[str, Entry], dict[str, str]]:
    """Values by every contender that can play, by name, and why the others cannot."""
    entries, left_out = {}, {}
    for contender in contenders:
        clock = time.perf_counter()
        try:
            values = contender.values(contest, seed)
        except InputError as error:
            left_out[contender.name] = str(error)
            continue
        entries[contender.name] = Entry(contender, values, time.perf_counter() - clock)
    return entries, left_out


def measured(
    entries: Mapping[str, Entry],
    model: nn.Module,
    players: Players,
    test: Split | Calibration,
    *,
    points: Sequence[int] | None = None,
) -> dict[str, Entry]:
    """The entries with their curves; players of several groups leave in one order, see `removal_order`.

    Args:
        entries: values of all of ``players``.
        model, players: the dense network.
        test: examples to measure on; none of those that were scored on.
        points: numbers of players removed; None = see `points_of`.
    """
    orders = np.stack([removal_order(players, entry.values.value) for entry in entries.values()])
    at = points_of(players.n) if points is None else points
    curves = removal_curves(model, players, orders, test, points=at)
    return {name: replace(entry, curve=curve) for (name, entry), curve in zip(entries.items(), curves, strict=True)}


def points_of(n: int, most: int = 9) -> list[int]:
    """Numbers of players removed at which to measure: all, or ``most`` spread evenly; and those of `SHARES`."""
    even = np.linspace(0, n, min(most, n + 1)).round()
    return sorted({*even.astype(int).tolist(), *(round(share * n) for share in SHARES)})


def joined(players: Players, by_group: Mapping[str, Mapping[str, Entry]]) -> dict[str, Entry]:
    """Entries of single groups as entries of all players: the values side by side, one ranking over all of them."""
    parts = [by_group[group.name] for group in players.groups]
    result = {}
    for name in (name for name in parts[0] if all(name in part for part in parts)):
        of = [part[name] for part in parts]
        scales = [max(float(np.abs(e.values.value).mean()), 1e-30) if name in SCALED else 1.0 for e in of]
        several = len(of) > 1 and of[0].contender.method is None  # rivals push every example once for all groups
        values = replace(
            of[0].values,
            value=np.concatenate([e.values.value / scale for e, scale in zip(of, scales, strict=True)]),
            stderr=np.concatenate([e.values.stderr / scale for e, scale in zip(of, scales, strict=True)]),
            counts=np.concatenate([e.values.counts for e in of]),
            n_evaluations=of[0].values.n_evaluations if several else sum(e.values.n_evaluations for e in of),
            efficiency_gap=None,
            efficient=False,
            worth_all=None,
            worth_none=None,
        )
        result[name] = Entry(of[0].contender, values, sum(e.seconds for e in of))
    return result


def summary(runs: Sequence[Mapping[str, Entry]]) -> dict[str, Any]:
    """Measured entries of several networks as one JSON-ready object: rows by area under the loss curve, the best first.

    Every number over networks has ``mean``, ``reach`` (half of its 95 % interval, Student's t; None for one network)
    and ``by_network``.
    """
    rows: dict[str, dict[str, Any]] = {}
    for name in (name for name in runs[0] if all(name in run for run in runs)):
        entries = [run[name] for run in runs]
        curves = [entry.curve for entry in entries if entry.curve is not None]
        mean, low, high = band(curves)
        ends = {"mean": mean, "low": low, "high": high}
        shares = [s for s in SHARES if round(s * mean.n_players) in mean.removed]
        rows[name] = {
            "kind": entries[0].contender.kind,
            "n_evaluations": float(np.mean([entry.values.n_evaluations for entry in entries])),
            "seconds": float(np.mean([entry.seconds for entry in entries])),
            "area_loss": spread([curve.area_loss for curve in curves]),
            "area_accuracy": spread([curve.area_accuracy for curve in curves]),
            "accuracy_at": {f"{share:g}": spread([curve.at(share)[0] for curve in curves]) for share in shares},
            "curve": {
                "removed": mean.removed.tolist(),
                "n_players": mean.n_players,
                "accuracy": {end: c.accuracy.tolist() for end, c in ends.items()},
                "loss": {end: c.loss.tolist() for end, c in ends.items()},
            },
        }
    return dict(sorted(rows.items(), key=lambda row: row[1]["area_loss"]["mean"]))


def spread(numbers: Sequence[float]) -> dict[str, Any]:
    """Mean over networks, half of its 95 % interval (None for one network), and each network's number."""
    mean, reach = mean_and_reach(np.asarray(numbers, dtype=np.float64))
    return {
        "mean": float(mean),
        "reach": float(reach) if len(numbers) > 1 else None,
        "by_network": [float(number) for number in numbers],
    }


def curves_study(
    data: Dataset,
    architecture: str,
    contenders: Sequence[Contender],
    *,
    layers: Sequence[str] | None = None,
    networks: int = 3,
    examples: int = 64,
    test_examples: int = 200,
    step: int | float = 0.25,
    worth: str = "cross_entropy",
    seed: int = 0,
    device: str | torch.device = "cpu",
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Train networks, score every group by every contender, and measure the curves; see the module.

    Args:
        data: with a recipe for ``architecture``.
        architecture: a name in ``RECIPES``.
        contenders: see `shaprune.experiments.contenders.choose`.
        layers: globs of the layers whose groups play; None = all but the first, which costs most (every coalition runs
            nearly the whole network), where there are more than two.
        networks: how many to train; network i has the seed ``seed + i``.
        examples: held-out examples to score on.
        test_examples: test examples to measure on.
        step: players per round of the modes, or a fraction below 1; it sets the price for every method.
        worth: what coalitions are judged by.
        seed: of everything random.
        device: where networks run.
        say: callback for lines about the progress.

    Returns:
        A JSON-ready object: `summary` per group under ``layers``, and under ``network_wide`` where there are several
        groups; who was left out, and why.

    Raises:
        InputError: a number below 1, or layers that name no group.
    """
    for name, number in (("networks", networks), ("examples", examples), ("test_examples", test_examples)):
        if number < 1:
            raise InputError(f"{name} is {number}; it must be at least 1")
    started = time.perf_counter()
    runs: dict[str, list[dict[str, Entry]]] = {}
    left_out: dict[str, str] = {}
    trained, price = [], {}
    for number in range(networks):
        clock = time.perf_counter()
        model = train(architecture, data, seed=seed + number, device=device)
        seconds = time.perf_counter() - clock
        right, loss = quality(model, data.test)
        trained.append({"seed": seed + number, "test_accuracy": right, "test_loss": loss, "seconds": seconds})
        say(f"network {number + 1} of {networks}: trained in {seconds:.0f} s, test accuracy {right:.2%}")
        inputs = data.test.inputs[:2].to(device)
        players = find_players(model, inputs, include=list(layers) if layers else None)
        if not layers and len(players.groups) > 2:
            players = players_of(players, [group.name for group in players.groups[1:]])
        held_out = Calibration(model, data.held_out.take(examples).batches())
        test = Calibration(model, data.test.take(test_examples).batches())
        by_group = {}
        for group in players.groups:
            clock = time.perf_counter()
            contest = Contest(model, players_of(players, [group.name]), held_out, worth, step)
            price[group.name] = contest.price
            entries, why = score_all(contest, contenders, seed=seed + number)
            left_out |= {f"{name} on {group.name}": reason for name, reason in why.items()}
            by_group[group.name] = entries
            runs.setdefault(group.name, []).append(measured(entries, model, contest.players, test))
            say(f"  {group.name}: {len(entries)} orders in {time.perf_counter() - clock:.1f} s")
        if len(by_group) > 1:
            runs.setdefault(NETWORK_WIDE, []).append(measured(joined(players, by_group), model, players, test))
    return {
        "benchmark": "curves",
        "data": data.name,
        "architecture": architecture,
        "worth": worth,
        "examples": len(data.held_out.take(examples)),
        "test_examples": len(data.test.take(test_examples)),
        "step": step,
        "area": "mean over the share of players removed, trapezoid rule; loss in nats",
        "networks": trained,
        "max_evaluations": price,
        "layers": {name: summary(of) for name, of in runs.items() if name != NETWORK_WIDE},
        "network_wide": summary(runs[NETWORK_WIDE]) if NETWORK_WIDE in runs else None,
        "left_out": left_out,
        "seconds": time.perf_counter() - started,
    }
