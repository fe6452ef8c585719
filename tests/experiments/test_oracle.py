"""The oracle benchmark: subsets and scores against slow definitions, the study against surgery, and its command."""

import json
import os
import re
import subprocess
import sys
from itertools import combinations, permutations
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Untouched
from numpy.typing import NDArray
from typer.testing import CliRunner, Result

import shaprune as sp
from shaprune.builtin.datasets import load_dataset
from shaprune.cli.app import app
from shaprune.cli.commands import bench
from shaprune.criteria.registry import CRITERIA
from shaprune.deploy.measure import accuracy
from shaprune.errors import InputError
from shaprune.experiments import oracle_networks as networks
from shaprune.experiments import oracle_study as study
from shaprune.experiments.oracle import (
    COLUMNS,
    PAPER,
    QUESTIONS,
    Oracle,
    best_rank,
    game_of_table,
    oracle,
    overlap,
    table_of,
)
from shaprune.experiments.oracle_rows import TabulatedLayer, rows_of
from shaprune.values.estimate import METHODS

ROUNDS = ("iterated, exact", "building, exact")  # every coalition of 8 players, then of 7, ...


def random_table(n: int, seed: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=1 << n)


def slow_score(order: tuple[int, ...], subsets: list[set[int]]) -> float:
    """The score of an order whose first K players are its R_K, from Python sets."""
    total = 0.0
    for k, best in enumerate(subsets, 1):
        mine = set(order[:k])
        total += k * len(best & mine) / len(best | mine)
    return total / sum(range(1, len(subsets) + 1))


def code(players: tuple[int, ...]) -> int:
    return sum(1 << player for player in players)


def random_subsets(n: int, largest: int, seed: int) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(seed)
    return [tuple(sorted(rng.choice(n, k, replace=False).tolist())) for k in range(1, largest + 1)]


# --- oracle subsets ---


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("seed", range(5))
def test_the_subsets_are_the_best_of_all(question: str, seed: int) -> None:
    n, everyone = 6, frozenset(range(6))
    table = random_table(n, seed)
    worth = {
        frozenset(i for i in range(n) if bits[-1 - i] == "1"): table[int(bits, 2)]
        for bits in (f"{code:06b}" for code in range(64))
    }
    found = oracle(table, question)
    for k in range(1, 6):
        best, kept = max(
            (worth[frozenset(c) if question == "keep" else everyone - frozenset(c)], c)
            for c in combinations(range(n), k)
        )
        assert found.subsets[k - 1] == kept
        assert found.worths[k - 1] == best
    assert found.ties == (0, 0, 0, 0, 0)
    assert found.optimal


@pytest.mark.parametrize("question", QUESTIONS)
def test_of_equals_the_lowest_code_is_taken_and_the_others_are_counted(question: str) -> None:
    found = oracle(np.zeros(1 << 7), question)
    assert found.subsets == ((0,), (0, 1), (0, 1, 2), (0, 1, 2, 3), (0, 1, 2, 3, 4))
    assert found.ties == tuple(comb(7, k) - 1 for k in range(1, 6))
    table = np.zeros(1 << 3)  # player 2 alone and player 1 alone are worth the same, and so is 0 with 2: 2 < 4
    table[[0b010, 0b100, 0b101]] = 1.0
    assert oracle(table, "keep", largest=2).subsets == ((1,), (0, 2))
    assert oracle(table, "keep", largest=2).ties == (1, 0)
    assert oracle(table, "remove", largest=2).subsets == ((1,), (0, 1))  # 101 stays, then 100 or 010
    assert oracle(table, "remove", largest=2).ties == (0, 1)


def test_bit_i_of_the_index_is_player_i() -> None:
    game = sp.Game.from_function(lambda kept: kept @ (2.0 ** np.arange(5)), 5)
    table = table_of(game, chunk=7)
    assert (table == np.arange(32)).all()
    rows = np.random.default_rng(0).random((20, 5)) < 0.5
    assert (game_of_table(table)(rows) == game(rows)).all()
    assert oracle(table, "keep").subsets[:2] == ((4,), (3, 4))
    assert oracle(table, "remove").subsets[:2] == ((0,), (0, 1))


@pytest.mark.parametrize("question", QUESTIONS)
def test_renaming_the_players_renames_the_subsets(question: str) -> None:
    n, table, new = 6, random_table(6, 3), np.array([3, 5, 0, 1, 4, 2])  # player i is called new[i]
    codes = np.arange(1 << n)
    renamed = np.empty_like(table)
    renamed[sum((codes >> i & 1) << int(new[i]) for i in range(n))] = table
    before, after = oracle(table, question), oracle(renamed, question)
    assert [set(s) for s in after.subsets] == [{int(new[i]) for i in s} for s in before.subsets]
    assert after.score == pytest.approx(before.score)


def test_what_is_no_table_is_refused() -> None:
    for bad in (np.zeros(6), np.zeros((2, 2)), np.zeros(0), np.zeros(1)):
        with pytest.raises(InputError, match="must hold 2\\^n worths"):
            oracle(bad, "keep", largest=1)
    table = np.zeros(8)
    table[5] = np.nan
    with pytest.raises(InputError, match="nan for coalition 0b101"):
        oracle(table, "keep", largest=1)
    with pytest.raises(InputError, match="did you mean 'remove'"):
        oracle(np.zeros(64), "removed")
    for largest in (0, 4):
        with pytest.raises(InputError, match=f"largest is {largest}; a game of 3 players"):
            oracle(np.zeros(8), "keep", largest=largest)


# --- the Oracle rank and the score ---


@pytest.mark.parametrize("seed", range(12))
def test_the_oracle_rank_is_the_best_of_all_orders(seed: int) -> None:
    subsets = random_subsets(7, 5 if seed % 2 else 4, seed)
    rank, score = best_rank([[code(s)] for s in subsets])
    sets = [set(s) for s in subsets]
    best = max(slow_score(order, sets) for order in permutations(range(7), len(subsets)))
    assert score == pytest.approx(best, abs=1e-12)
    assert slow_score(rank, sets) == pytest.approx(best, abs=1e-12)
    assert len(set(rank)) == len(subsets)


def test_the_first_best_player_is_not_always_first() -> None:
    # ({0}, {1,2}, {1,2,3}): 0 first costs 2 * 1/3 + 3 * 2/4 and gives 1, 1 or 2 first gives all of K = 2 and 3
    rank, score = best_rank([[code(s)] for s in [(0,), (1, 2), (1, 2, 3)]])
    assert set(rank) == {1, 2, 3}
    assert score == pytest.approx(5 / 6)


@pytest.mark.parametrize("seed", range(6))
def test_with_ties_the_oracle_rank_is_the_best_of_all_orders_too(seed: int) -> None:
    rng = np.random.default_rng(seed)
    found = oracle(rng.integers(0, 2, size=1 << 7).astype(float), QUESTIONS[seed % 2], largest=4)
    assert sum(found.ties) > 10
    sets = [[{i for i in range(7) if c >> i & 1} for c in codes] for codes in found.best]

    def slow(order: tuple[int, ...]) -> float:
        mine = [set(order[:k]) for k in range(1, 5)]
        near = [max(len(s & r) / len(s | r) for s in best) for best, r in zip(sets, mine, strict=True)]
        return sum(k * term for k, term in enumerate(near, 1)) / 10

    best = max(slow(order) for order in permutations(range(7), 4))
    assert found.any_score == pytest.approx(best, abs=1e-12)
    assert slow(found.any_rank) == pytest.approx(best, abs=1e-12)
    assert found.score <= found.any_score
    order = rng.permutation(7).tolist()
    ranking = order if found.question == "remove" else order[::-1]
    assert overlap(ranking, found, ties=True) == pytest.approx(slow(tuple(order[:4])), abs=1e-12)
    assert overlap(ranking, found) == pytest.approx(slow_score(tuple(order[:4]), [set(s) for s in found.subsets]))


def oracle_of(question: str, *best: list[tuple[int, ...]]) -> Oracle:
    """An oracle with given best sets; what a ranking's score does not depend on is left empty."""
    codes = tuple(tuple(map(code, sets)) for sets in best)
    return Oracle(question, tuple(sets[0] for sets in best), (), (), (), 1.0, codes, (), 1.0)


def test_a_score_by_hand() -> None:
    # keep: R_1 = {3}, R_2 = {3, 1}, R_3 = {3, 1, 0}; overlaps 0/2, 1/3, 3/3 weighted by 1, 2, 3 of 6
    found = oracle_of("keep", [(0,)], [(1, 2)], [(0, 1, 3)])
    assert overlap([2, 0, 1, 3], found) == pytest.approx((0 + 2 / 3 + 3) / 6)
    # remove: R_1 = {2}, R_2 = {2, 0}, R_3 = {2, 0, 1}; overlaps 0/2, 1/3, 2/4
    found = oracle_of("remove", [(0,)], [(1, 2)], [(0, 1, 3)])
    assert overlap(np.array([2, 0, 1, 3]), found) == pytest.approx((0 + 2 / 3 + 3 / 2) / 6)
    # the nearest of tied sets: {2} is as good as {0}, and {0, 2, 3} as {0, 1, 3}, but shares no more with {0, 1, 2}
    found = oracle_of("remove", [(0,), (2,)], [(1, 2)], [(0, 1, 3), (0, 2, 3)])
    assert overlap([2, 0, 1, 3], found) == pytest.approx((0 + 2 / 3 + 3 / 2) / 6)
    assert overlap([2, 0, 1, 3], found, ties=True) == pytest.approx((1 + 2 / 3 + 3 / 2) / 6)


@pytest.mark.parametrize("question", QUESTIONS)
def test_where_players_just_add_up_every_sensible_ranking_is_the_oracle(question: str) -> None:
    weights = np.array([0.3, 0.1, 0.7, 0.2, 0.5, 0.4, 0.6])
    game = game_of_table(table_of(sp.Game.from_function(lambda kept: kept @ weights, 7)))
    found = oracle(table_of(game), question)
    leaving = [1, 3, 0, 5, 4, 6, 2]
    assert found.score == 1
    assert found.rank == tuple((leaving if question == "remove" else leaving[::-1])[:5])
    assert overlap(leaving, found) == 1
    assert overlap(leaving[::-1], found) < 0.5
    for method in ("exact", "leave-one-out", "permutation"):
        assert overlap(sp.estimate(game, method).ranking(), found) == 1


@pytest.mark.parametrize("question", QUESTIONS)
def test_no_ranking_beats_the_oracle_and_random_ones_score_what_chance_gives(question: str) -> None:
    n, draws, rng = 9, 2_000, np.random.default_rng(5)
    found = oracle(random_table(n, 9), question)
    scores = [overlap(rng.permutation(n), found) for _ in range(draws)]
    assert max(scores) <= found.score + 1e-12
    chance = 0.0  # the size of the overlap of two random sets of K is hypergeometric
    for k in range(1, 6):
        odds = [comb(k, c) * comb(n - k, k - c) / comb(n, k) for c in range(k + 1)]
        chance += k * sum(p * c / (2 * k - c) for c, p in enumerate(odds)) / 15
    assert abs(np.mean(scores) - chance) < 4 * np.std(scores) / np.sqrt(draws)


def test_the_pure_part_needs_no_torch() -> None:
    code = "import sys, shaprune.experiments.oracle; print([m for m in ('torch', 'sklearn') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# --- rows ---


@pytest.mark.parametrize("n", [8, 10, 12, 20])
def test_every_column_of_the_paper_has_one_row(n: int) -> None:
    columns = [row.paper for row in rows_of(n).values() if row.paper]
    assert sorted(columns) == sorted(set(COLUMNS) & {*METHODS, "partial-3"})
    assert all(tuple(table) == COLUMNS for table in PAPER.values())


def test_every_estimator_and_every_rival_has_a_row() -> None:
    names = rows_of(20)
    for name, method in METHODS.items():
        assert any(row.startswith(name) for row in names) == (not method.differentiates), name
    assert set(CRITERIA) <= set(names)
    few = names["permutation, 10 (N + 1)"]
    assert (few.paper, few.budget) == ("permutation", 210)  # 10 orders of 20 players, 21 coalitions each
    assert (names["regression, 5,000"].paper, rows_of(10)["regression, 1,000"].paper) == ("regression", "regression")
    assert {name for name in rows_of(10) if name.endswith("1,000")} == {n for n in names if n.endswith("1,000")}


@pytest.mark.parametrize("n", [8, 11])
def test_rows_on_a_table_pay_what_their_name_says(n: int) -> None:
    layer = TabulatedLayer("", None, None, None, game_of_table(random_table(n, 0)))  # type: ignore[arg-type]
    for name, row in rows_of(n).items():
        if row.optional or "per example" in name:
            continue  # they need the network
        order, paid = row.order(layer, 0)
        assert sorted(order.tolist()) == list(range(n)), name
        limit = row.budget or (2 ** (n + 1) if name in ROUNDS else 2**n)
        assert 0 < paid <= limit, name
        if row.budget:
            assert paid > 0.8 * row.budget, name
            assert (row.order(layer, 0)[0] == order).all(), name
            assert any((row.order(layer, seed)[0] != order).any() for seed in range(1, 9)), name
    assert rows_of(n)["exact"].order(layer, 0)[1] == 2**n
    assert rows_of(n)["leave-one-out"].order(layer, 0)[1] == n + 1


# --- the study and its command, on digits ---


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(a) for a in arguments], prog_name="shaprune")
    assert result.exit_code == code, (result.stdout, result.stderr)
    return result


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> tuple[Path, dict[str, Any]]:
    """One real run of the command: its folder and its JSON object."""
    out = tmp_path_factory.mktemp("bench") / "oracle"
    options = ("--networks", 2, "--repeats", 1, "--examples", 100, "--seed", 5, "--json", "--out", out)
    return out, json.loads(run("bench", "oracle", *options).stdout)


def test_the_command_writes_what_it_prints(done: tuple[Path, dict[str, Any]]) -> None:
    out, found = done
    assert [p.name for p in out.iterdir()] == ["oracle.json"]
    assert found.pop("artifacts") == {"oracle": str(out / "oracle.json")}
    assert json.loads((out / "oracle.json").read_text()) == found
    found["artifacts"] = {"oracle": str(out / "oracle.json")}
    assert [(name, layer["players"]) for name, layer in found["layers"].items()] == [("conv1", 8), ("conv2", 9)]
    assert [network["seed"] for network in found["networks"]] == [5, 6]
    assert min(network["test_accuracy"] for network in found["networks"]) > 0.9
    assert found["paper"] is None


def test_every_row_is_there_and_below_the_oracle(done: tuple[Path, dict[str, Any]]) -> None:
    for layer in done[1]["layers"].values():
        assert {*layer["rows"], *layer["left_out"]} == {*rows_of(layer["players"]), "Oracle"}
        assert set(layer["left_out"]) == {"bn_scale"}
        for name, row in layer["rows"].items():
            for question in QUESTIONS:
                cell = row[question]
                ceilings = [network["oracle"][question]["score"] for network in layer["networks"]]
                assert len(cell["by_network"]) == 2
                assert all(0 <= s <= c + 1e-4 for s, c in zip(cell["by_network"], ceilings, strict=True)), name
                assert cell["mean"] == pytest.approx(np.mean(cell["by_network"]), abs=1e-4)
                assert cell["std"] == pytest.approx(abs(np.subtract(*cell["by_network"])) / 2**0.5, abs=2e-4)
                assert cell["paper"] is None
                assert cell["any"]["mean"] >= cell["mean"]
                share = np.mean(np.divide(cell["by_network"], ceilings))
                assert cell["of_oracle"] == pytest.approx(share, abs=1e-3)
                tied = [network["oracle"][question]["any_score"] for network in layer["networks"]]
                assert all(s <= c + 1e-4 for s, c in zip(cell["any"]["by_network"], tied, strict=True)), name
        assert layer["rows"]["Oracle"]["keep"]["of_oracle"] == 1
        assert layer["rows"]["Oracle"]["remove"]["any"]["of_oracle"] == 1
        assert layer["rows"]["exact"]["evaluations"] == 2 ** layer["players"]


def test_the_same_seed_finds_the_same_and_leaves_no_trace(
    done: tuple[Path, dict[str, Any]], untouched: Untouched
) -> None:
    data = load_dataset("digits")
    torch.set_num_threads(2)
    try:
        with untouched():
            again = study.oracle_study(data, networks=1, repeats=1, examples=100, seed=6)
    finally:
        torch.set_num_threads(1)
    for name, layer in again["layers"].items():
        known = done[1]["layers"][name]
        assert json.loads(json.dumps(layer["networks"][0]["oracle"])) == known["networks"][1]["oracle"]
        for row, scores in layer["rows"].items():
            for question in QUESTIONS:
                assert scores[question]["by_network"][0] == known["rows"][row][question]["by_network"][1], row
                assert scores[question]["std"] is None


def test_the_oracle_subsets_are_those_of_the_network_after_surgery(done: tuple[Path, dict[str, Any]]) -> None:
    data = load_dataset("digits")
    model = networks.trained(networks.ARCHITECTURES["narrow"], data, 5, torch.device("cpu"))
    example = data.test.inputs[:2]
    for name, layer in done[1]["layers"].items():
        players = sp.find_players(model, example, include=[name])
        for question in QUESTIONS:
            found = layer["networks"][0]["oracle"][question]
            for subset, worth in zip(found["subsets"], found["worths"], strict=True):
                kept = np.isin(np.arange(players.n), subset, invert=question == "remove")
                small = sp.prune(model, sp.Plan.from_coalition(players, kept), example)
                assert accuracy(small, data.held_out.take(100).batches()) == pytest.approx(worth)
        game = sp.NetworkGame(model, players, data.held_out.take(100).batches(), "accuracy", name)
        table = table_of(game)
        everyone = len(table) - 1
        lost = [table[everyone] - table[everyone ^ 1 << i] for i in range(players.n)]
        for question in QUESTIONS:
            found, cell = oracle(table, question), layer["rows"]["leave-one-out"][question]
            for ties, scores in ((False, cell), (True, cell["any"])):
                expected = overlap(np.argsort(lost, kind="stable"), found, ties=ties)
                assert scores["by_network"][0] == pytest.approx(expected, abs=1e-4)
            ceiling = layer["rows"]["Oracle"][question]
            assert ceiling["by_network"][0] == pytest.approx(found.score, abs=1e-4)
            assert ceiling["any"]["by_network"][0] == pytest.approx(found.any_score, abs=1e-4)


@pytest.mark.parametrize("name", ["lenet5-reduced", "lenet5-reduced-bn"])
def test_the_networks_for_mnist_have_10_and_20_channels(name: str) -> None:
    model = networks.ARCHITECTURES[name].factory().eval()
    players = sp.find_players(model, torch.randn(2, 1, 28, 28), include=list(study.LAYERS))
    assert [(g.name, len(g)) for g in players.groups] == [("conv1", 10), ("conv2", 20)]


def test_people_see_the_papers_table_and_all_rows(
    done: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = json.loads(json.dumps(done[1]))
    found["paper"] = {"source": "", "table": {}}
    exact = found["layers"]["conv2"]["rows"]["exact"]["remove"]
    exact.update(mean=0.4321, std=0.0123, paper=0.944)
    exact["any"].update(mean=0.876, std=0.098)
    monkeypatch.setattr(study, "oracle_study", lambda *a, **k: found)
    shown = run("bench", "oracle", "--out", tmp_path / "o").stdout
    assert re.search(r"remove, N = 9 .*0\.432 \(0\.012\)", shown)
    assert re.search(r"nearest of tied sets .*0\.876 \(0\.098\)", shown)
    assert re.search(r"the paper .*0\.944", shown)
    assert all(name in shown for name in ("greedy-backward", "fpgm", "left out in conv1: criterion 'bn_scale'"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["orcle"], "No such command 'orcle'"),
        (["oracle", "--arch", "narow"], "did you mean 'narrow'?"),
        (["oracle", "--arch", "lenet5-reduced"], "lenet5-reduced is not for digits; choose narrow"),
        (["oracle", "--data", "cifar10:."], "runs on digits or mnist:DIR, not on 'cifar10'"),
        (["oracle", "--networks", "0"], "'--networks'"),
        (["oracle", "--examples", "0"], "'--examples'"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = run("bench", *arguments, *(["--out", tmp_path / "o"] if arguments[0] == "oracle" else []), code=2)
    assert message in re.sub(r"[\s│╭╮╰╯─]+", " ", result.stderr)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_refused_before_any_work(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    assert "--overwrite" in run("bench", "oracle", "--out", done[0], code=2).stderr
    (tmp_path / "thesis.tex").touch()
    assert "thesis.tex" in run("bench", "oracle", "--out", tmp_path, "--overwrite", code=2).stderr


def test_numbers_below_one_are_refused() -> None:
    for option in ("networks", "repeats", "examples"):
        with pytest.raises(InputError, match=f"{option} is 0"):
            study.oracle_study(load_dataset("digits"), **{option: 0})


def test_help_of_the_group_and_of_each_benchmark() -> None:
    assert all(name in run("bench", "--help").stdout for name in bench.BENCHMARKS)
    for name in bench.BENCHMARKS:
        text = run("bench", name, "--help").stdout
        assert f"Example: shaprune bench {name}" in re.sub(r"\s+", " ", text)
        assert all(option in text for option in ("--json", "--seed", "--device", "--out", "--debug", "--overwrite"))
    code = "import sys, shaprune.cli.commands.bench; print('torch' in sys.modules)"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_names_in_the_options_are_those_of_the_registry() -> None:
    assert list(bench.ARCHITECTURES) == list(networks.ARCHITECTURES)
