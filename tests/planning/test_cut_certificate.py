"""Plans say whether their cut is certified, or by how many players it is not."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planning.test_plan import chain_of_two

from shaprune.errors import InputError
from shaprune.planning.budget import Budget
from shaprune.planning.limits import Limits
from shaprune.planning.plan import Plan, plan
from shaprune.planning.scores import Scores
from shaprune.values.certificate import Certificate
from shaprune.values.result import Values

ASKED = {"certified_cut": {"eps": None, "confidence": 0.95}}


def _values(numbers: list[float], stderr: float, options: dict[str, Any]) -> Values:
    array, counts = np.array(numbers, dtype=float), np.full(len(numbers), 1_000)
    return Values(array, np.full(len(array), stderr), 1, "t", None, "t", None, None, counts, options)


def _scores(stderr: float, options: dict[str, Any] | None = None) -> Scores:
    options = ASKED if options is None else options
    first, second = [4.0, 1.0, 3.0, 2.0], [0.1, 5.0, 0.2, 6.0, 0.3, 7.0]
    by_group = {"a": _values(first, stderr, options), "b": _values(second, stderr, options)}
    return Scores(chain_of_two(), by_group)


def test_a_plan_is_certified_where_the_intervals_leave_no_doubt() -> None:
    found = plan(_scores(0.001), Budget(players=0.5))
    assert found.certificate == Certificate(0.95, pytest.approx(0.25), 0)  # the median of all values is 2.5
    assert str(found.certificate) in found.table().notes
    for allocation in ("value", "uniform", "shapley-layers", "global"):
        assert plan(_scores(0.001), Budget(macs=0.6), allocation).certificate is not None


def test_a_plan_is_not_certified_by_so_many_players() -> None:
    found = plan(_scores(0.2), Budget(players=0.5))  # 2.0 leaves and 3.0 stays, and neither interval is below .9 wide
    assert found.certificate is not None
    assert found.certificate.undecided == 1
    assert "not certified at .95, eps = 0.25: 1 player is undecided" in found.table().notes


def test_eps_is_the_one_that_was_given() -> None:
    given = {"certified_cut": {"eps": 1.9, "confidence": 0.95}}
    found = plan(_scores(0.2, given), Budget(players=0.5)).certificate
    assert found == Certificate(0.95, 1.9, 0)


def test_players_that_limits_keep_are_counted() -> None:
    found = plan(_scores(0.001), Budget(players=0.7), limits=Limits(max_removed={"b": 0.2})).certificate
    assert found == Certificate(0.95, pytest.approx(0.25), 2)  # 1.0 and 2.0 leave of a, 0.2 and 0.3 stay in b


def test_groups_are_compared_each_for_itself_where_a_plan_ranks_them_so() -> None:
    assert plan(_scores(0.001), Budget(players=0.5), "uniform").certificate == Certificate(0.95, pytest.approx(0.25), 0)
    by_value = Plan.from_coalition(chain_of_two(), plan(_scores(0.001), Budget(players=0.5), "uniform").kept)
    assert by_value.certificate is None


def test_scores_that_nothing_was_asked_of_have_no_certificate() -> None:
    found = plan(_scores(0.001, {}), Budget(players=0.5))
    assert found.certificate is None
    assert "certificate" not in found.to_json()


def test_certificates_come_back_from_files_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    found = plan(_scores(0.2), Budget(players=0.5))
    found.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json").certificate == found.certificate
    for bad in ({"confidence": "x"}, {"undecided": -1}, {"eps": None}):
        data = json.loads(json.dumps(found.to_json()))
        data["certificate"] |= bad
        with pytest.raises(InputError, match="this plan is damaged: 'certificate"):
            Plan.from_json(data)
