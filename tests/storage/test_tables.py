"""Tables: what text, notebooks, data frames and CSV show of the same rows; and every result of the package has them."""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import shaprune as sp
from shaprune.storage.tables import MAX_HTML_ROWS, Table, Tabular

TABLE = Table(
    {"name": "", "macs": ",.0f", "share": ".1%", "good": ""},
    [("a<b", 1234.4, 0.5, True), ("c", None, 1, False)],
    ("2 & 3",),
)


class Result(Tabular):
    def headline(self) -> str:
        return "two rows"

    def table(self) -> Table:
        return TABLE


def test_text_is_aligned_numbers_to_the_right() -> None:
    assert str(TABLE) == "name   macs   share  good\na<b   1,234   50.0%   yes\nc         -  100.0%    no\n2 & 3"


def test_html_is_escaped_and_says_how_many_rows_are_left_out() -> None:
    shown = Result()._repr_html_()
    assert "<caption>Result(two rows)</caption>" in shown
    assert "<td>a&lt;b</td><td>1,234</td><td>50.0%</td><td>yes</td>" in shown
    assert "<div>2 &amp; 3</div>" in shown
    assert "a<b" not in shown
    many = Table({"n": ""}, [(i,) for i in range(MAX_HTML_ROWS + 1200)]).html()
    assert many.count("<tr>") == MAX_HTML_ROWS + 1
    assert "1,200 more rows" in many


def test_a_data_frame_has_the_numbers_in_full() -> None:
    pandas = pytest.importorskip("pandas")
    frame = Result().to_dataframe()
    assert [*frame.columns] == ["name", "macs", "share", "good"]
    assert frame["macs"][0] == 1234.4
    assert pandas.isna(frame["macs"][1])
    assert frame["good"].tolist() == [True, False]


def test_without_pandas_the_error_names_the_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(sp.InputError, match=r"pip install 'shaprune\[pandas\]'"):
        Result().to_dataframe()


def test_csv_has_the_numbers_in_full_and_replaces_only_its_like(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    for _ in range(2):
        Result().to_csv(path)
    with path.open(newline="") as file:
        assert [*csv.reader(file)] == [
            ["name", "macs", "share", "good"],
            ["a<b", "1234.4", "0.5", "True"],
            ["c", "", "1", "False"],
        ]
    for other in ("name,macs\n1,2\n", "name,macs,share,good,more\n"):
        path.write_text(other)
        with pytest.raises(sp.InputError, match="not recognised as written by shaprune"):
            Result().to_csv(path)
        assert path.read_text() == other
    link = tmp_path / "link.csv"
    link.symlink_to(tmp_path / "elsewhere.csv")
    Result().to_csv(tmp_path / "elsewhere.csv")
    with pytest.raises(sp.InputError, match="not recognised"):
        Result().to_csv(link)


def _results() -> dict[str, Tabular]:
    players = sp.find_players(
        nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), torch.ones(1, 3)
    )
    game = sp.Game.from_function(lambda kept: kept @ np.arange(4.0), n_players=4)
    by_group = {
        g.name: sp.estimate(sp.Game.from_function(lambda kept: kept.sum(1), len(g)), "exact") for g in players.groups
    }
    scores = sp.Scores(players, by_group, "accuracy", notes=("a note",))
    return {
        "values": sp.estimate(game, "exact"),
        "players": players,
        "scores": scores,
        "plan": sp.Plan.from_coalition(players, np.arange(players.n) > 1),
        "redundancy": sp.metrics.redundancy(game),
        "frontier": sp.metrics.frontier(lambda budget: sp.plan(scores, budget), "players", [0.8, 0.6]),
    }


RESULTS = _results()
ROWS = {
    "values": (4, 4),
    "players": (2, 10),
    "scores": (2, 10),
    "plan": (2, 10),
    "redundancy": (6, 6),
    "frontier": (2, 2),
}


@pytest.mark.parametrize("name", RESULTS)
def test_every_result_shows_itself(name: str, tmp_path: Path) -> None:
    result = RESULTS[name]
    assert repr(result) == f"{type(result).__name__}({result.headline()})"
    assert "\n" not in repr(result)
    assert len(repr(result)) < 250
    assert result.summary() == str(result.table())
    assert f"<caption>{type(result).__name__}(" in result._repr_html_()
    assert (len(result.table().rows), len(result.records().rows)) == ROWS[name]
    result.to_csv(tmp_path / "rows.csv")
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 1 + ROWS[name][1]


@pytest.fixture(scope="module")
def compressed() -> Tabular:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    inputs = torch.randn(20, 3)
    return sp.compress(model, [(inputs, None)], sp.Budget(macs=0.7), example_inputs=inputs, progress=False)


@pytest.mark.usefixtures("one_thread")
def test_what_compress_returns_shows_its_networks_side_by_side(compressed: Tabular) -> None:
    assert "\n" not in repr(compressed)
    assert [row[0] for row in compressed.table().rows] == ["dense", "raw", "pruned"]
    dense, _, pruned = (row[2] for row in compressed.records().rows)
    assert pruned < dense == 4 * 4 + 6 * 5 + 2 * 7
    assert "-" in compressed.summary().splitlines()[1].split()  # accuracy, not measured
    assert "macs: " in compressed._repr_html_()


def test_values_are_shown_from_the_most_valuable_on_and_many_only_at_both_ends() -> None:
    values = sp.estimate(sp.Game.from_function(lambda kept: kept @ np.arange(4.0), n_players=4), "exact")
    assert [row[0] for row in values.table().rows] == [3, 2, 1, 0]
    assert [row[:2] for row in values.records().rows] == [(i, pytest.approx(i)) for i in range(4)]
    many = values.part(np.arange(4).repeat(50)).table()
    assert len(many.rows) == 20
    assert many.notes == ("180 players between them are not shown",)
