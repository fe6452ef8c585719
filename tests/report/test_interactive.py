"""The interactive report without a browser: what it ships, that it stands alone, and what it refuses."""

import base64
import gzip
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from testkit.reported import FRONTIER, Residual, curves_of, made_up, many, renamed
from torch import nn

import shaprune as sp
from shaprune.deploy.measure import Latency, Measurement
from shaprune.planning.limits import Limits
from shaprune.report.comparison import to_json
from shaprune.report.content import Content, Evidence
from shaprune.report.figures.network_diagram import MAX_BARS, bars, network_diagram
from shaprune.report.interactive import interactive
from shaprune.report.payload import payload
from shaprune.report.removal_curves import Curves
from shaprune.report.run_files import read_run
from shaprune.values.redundancy import Redundancy


@pytest.fixture(scope="module")
def scores() -> sp.Scores:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        players = sp.find_players(Residual().eval(), torch.randn(2, 1, 8, 8))
    return made_up(players)


@pytest.fixture(scope="module")
def full(scores: sp.Scores) -> tuple[Content, Evidence]:
    """Everything that a report can show but pictures."""
    measured = {
        "dense": Measurement(0.9, 1000, 20_000, Latency(2.0, 1.5, 3.0), 4_100),
        "pruned": Measurement(0.89, 400, 9_000, Latency(1.0, 0.9, 1.1), 1_700),
    }
    removal = Curves(
        np.array([0, 10, 20]), 35, {"values": np.array([[0.9, 0.8, 0.3]]), "random": np.random.rand(3, 3)}, 50
    )
    plan = sp.plan(scores, sp.Budget(params=0.6))
    matrix = np.array([[0, -0.5], [-0.5, 0]])
    group = scores.players.groups[0]
    whole = np.zeros((len(group), len(group)))
    whole[:2, :2] = matrix
    evidence = Evidence(
        curves_of(scores),
        {"ours": FRONTIER, "<i>rival</i>": FRONTIER},
        {group.name: Redundancy(whole, None, 10, "exact")},
    )
    return Content("all of it", scores, plan, removal, measured, "8 images, 1 thread"), evidence


class Tags(HTMLParser):
    """Tags with their attributes, those left open, and the text of scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
        if tag not in {"meta", "br", "img", "input"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif self.open and self.open[-1] != "style":
            self.text += data


# --- the file ---


def test_it_is_one_file_that_asks_nobody(full: tuple[Content, Evidence]) -> None:
    pytest.importorskip("plotly")
    html = interactive(*full)
    assert len(html.encode()) < 8_000_000
    tags = Tags(html)
    assert tags.open == []
    assert [dict(a).get("type") for tag, a in tags.found if tag == "script"] == ["application/json", "text/plain", None]
    for tag, attributes in tags.found:
        assert "src" not in attributes or (attributes["src"] or "").startswith("data:")
        assert (attributes.get("href") or "#").startswith("#")
        assert not [name for name in attributes if name.startswith("on")], tag
    policy = next(a["content"] for tag, a in tags.found if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy
    assert not re.search(r"https?:", html)
    assert "Plotly" in gzip.decompress(base64.b64decode(tags.scripts[1])).decode()
    assert interactive(*full) == html


def test_every_section_of_what_was_given_is_there(full: tuple[Content, Evidence], scores: sp.Scores) -> None:
    pytest.importorskip("plotly")
    html = interactive(*full)
    for name in ("values", "frontier", "sensitivity", "removal", "error"):
        assert f'id="plot-{name}"' in html
    for told in (
        "Before and after",
        "1.50 to 3.00",
        "Which players can replace",
        "max_evaluations",
        "What cannot leave",
    ):
        assert told in html
    ids = re.findall(r'\bid="([^"]*)"', html[: html.index('id="data"')])
    assert len(ids) == len(set(ids))
    bare = interactive(Content("values only", scores))
    assert 'id="plot-values"' in bare
    assert 'id="plot-error"' in bare
    for name in ("frontier", "sensitivity", "removal"):
        assert f'id="plot-{name}"' not in bare


def test_everything_that_is_touched_has_a_name(full: tuple[Content, Evidence]) -> None:
    pytest.importorskip("plotly")
    html = interactive(*full)
    for control in re.findall(r"<(?:select|input)[^>]*>", html):
        name = re.search(r'id="([^"]*)"', control)
        assert name is not None
        inside = re.search(r"<label[^>]*>(?:(?!</label>).)*" + re.escape(control), html)
        assert inside or f'for="{name[1]}"' in html
    assert all(a.get("aria-label") for tag, a in Tags(html).found if a.get("role") == "img")
    assert '<html lang="en">' in html


def test_names_are_text_wherever_they_stand(scores: sp.Scores) -> None:
    pytest.importorskip("plotly")
    evil = '</script><script>alert("x")</script><img src=x onerror=alert(1)>'
    players = renamed(scores.players, evil)
    by_group = {g.name: scores[old.name] for g, old in zip(players.groups, scores.players.groups, strict=True)}
    html = interactive(Content(evil, sp.Scores(players, by_group, evil), None))
    tags = Tags(html)
    assert len(tags.scripts) == 3
    assert "img" not in {tag for tag, _ in tags.found}
    assert json.loads(tags.scripts[0])["title"] == evil
    assert evil in tags.text


def test_a_missing_plotly_says_what_to_install(scores: sp.Scores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "plotly.offline", None)
    with pytest.raises(sp.InputError, match=r"pip install 'shaprune\[plotly\]'"):
        interactive(Content("a report", scores))


def test_the_scripts_are_short() -> None:
    scripts = [p for p in files("shaprune.report").joinpath("assets").iterdir() if p.name.endswith(".js")]
    assert len(scripts) == 4
    assert max(len(p.read_text(encoding="utf-8").splitlines()) for p in scripts) < 250


# --- what the script reads ---


def test_the_ways_down_are_shipped(full: tuple[Content, Evidence], scores: sp.Scores) -> None:
    data = json.loads(json.dumps(payload(*full), allow_nan=False))
    assert list(data["paths"]) == [
        "plan",
        "global:macs",
        "global:params",
        "global:players",
        "value",
        "uniform",
        "shapley-layers",
    ]
    for path in data["paths"].values():
        assert len(path["cost"]["macs"]) == len(path["steps"]) + 1 == len(path["quality"])
        assert path["quality"][0] == pytest.approx(0.9)
    given = full[0].plan
    assert given is not None
    assert sorted(data["paths"]["plan"]["steps"][0]) == np.flatnonzero(~given.kept).tolist()
    assert data["paths"]["plan"]["budget"] == given.budget
    assert sp.Plan.from_json({**given.to_json(), "players": data["plan"]["players"]}).cost == given.cost
    assert data["low"][0] < data["value"][0] < data["high"][0]
    assert data["frontiers"]["ours"][1] == {"shares": {"macs": 0.5, "params": 0.5, "players": 0.5}, "quality": 0.8}


def test_what_is_not_known_is_none_and_not_a_number(scores: sp.Scores) -> None:
    first = scores.players.groups[0]
    values = replace(scores[first.name], stderr=np.full(len(first), np.inf))
    data = payload(Content("x", sp.Scores(scores.players, {**scores.by_group, first.name: values}, "w")), Evidence())
    assert data["low"][0] is None
    assert data["diagnostics"][0]["error"] is None
    assert data["diagnostics"][1]["error"] > 0


def test_limits_hold_for_the_slider(scores: sp.Scores) -> None:
    data = payload(Content("x", scores), Evidence(within=Limits(keep=["inner", "wide"])))
    spared = {i for name in ("inner", "wide") for i in scores.players.group(name).indices.tolist()}
    for path in data["paths"].values():
        assert not spared & {player for step in path["steps"] for player in step}
    with pytest.raises(sp.InputError, match="no player can leave"):
        payload(Content("x", scores), Evidence(within=Limits(max_removed=0.0)))


def test_what_does_not_belong_together_is_refused(scores: sp.Scores) -> None:
    other = made_up(scores.players, seed=5)
    with pytest.raises(sp.InputError, match="another ranking"):
        payload(Content("x", scores), Evidence(curves_of(other)))
    with pytest.raises(sp.InputError, match="'odd' is not what"):
        payload(Content("x", scores), Evidence(frontiers={"odd": {"points": [{"shares": {"macs": 1}}]}}))


# --- the diagram ---


def test_a_bar_spans_the_layers_that_a_group_touches(scores: sp.Scores) -> None:
    found = {bar.label: bar for bar in bars(scores.players)}
    stream, inner = found["stem"], found["inner"]
    assert stream.first == 0
    assert stream.first < inner.first <= inner.last <= stream.last
    drawn = Tags(network_diagram(scores.players))
    shown = [a for _, a in drawn.found if a.get("class") == "bar"]
    assert [a["data-groups"] for a in shown] == [str(i) for i in range(len(scores.players.groups))]
    assert [a["tabindex"] for a in shown] == ["0", *["-1"] * (len(shown) - 1)]
    assert all("players" in (a["aria-label"] or "") for a in shown)
    backs = [
        (float(a["x"] or 0), float(a["width"] or 0), a["y"]) for _, a in drawn.found if (a.get("class") or "") == "back"
    ]
    for i, (x, width, y) in enumerate(backs):  # no two bars overlap
        assert all(y != b[2] or x + width <= b[0] or b[0] + b[1] <= x for j, b in enumerate(backs) if j != i)


def test_a_network_of_many_groups_is_folded(scores: sp.Scores) -> None:
    players = many(scores.players, 300)
    found = bars(players)
    assert found[1].label == "block*.conv \u00d7 150"
    assert sorted(i for bar in found for i in bar.groups) == list(range(300))
    text = network_diagram(players)
    assert text.count('class="bar"') == MAX_BARS
    assert f"{len(found) - MAX_BARS} more are in the table" in text


def test_a_report_of_many_players_stays_small() -> None:
    pytest.importorskip("plotly")
    pairs = [nn.Sequential(nn.Linear(8, 2048), nn.Linear(2048, 8)) for _ in range(10)]
    players = sp.find_players(nn.Sequential(*pairs).eval(), torch.randn(2, 8))
    assert players.n > 20_000
    report = interactive(Content("large", made_up(players)))
    assert len(report.encode()) < 6e6  # a BERT of 37,000 has 8 MB


# --- a folder ---


def saved(folder: Path, scores: sp.Scores) -> Path:
    folder.mkdir()
    scores.save(folder / "values.json")
    return folder


def test_a_folder_brings_what_it_holds(tmp_path: Path, full: tuple[Content, Evidence], scores: sp.Scores) -> None:
    run = saved(tmp_path / "run", scores)
    assert read_run(run).plan is None
    content = full[0]
    assert content.plan is not None
    content.plan.save(run / "plan.json")
    curves_of(scores).save(run / "curves.json")
    (run / "frontier.json").write_text(json.dumps(FRONTIER))
    rows = {name: to_json(m) for name, m in content.measurements.items()}
    (run / "measurements.json").write_text(json.dumps({**rows, "seconds": {"score": 2.5}}))
    found = read_run(run)
    assert found.plan is not None
    assert (found.plan.kept == content.plan.kept).all()
    assert found.sensitivity is not None
    assert found.frontier == FRONTIER
    assert {name: to_json(m) for name, m in found.measurements.items()} == rows
    assert found.setting == "1 image, 1 thread"
    assert found.seconds == {"score": 2.5}
    assert read_run(run / "values.json").plan is None


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        (None, "", "name the folder or file"),
        ("journal.sqlite", "", "--watch` shows how it goes, `shaprune resume .*` goes on"),
        ("values.json", "{", "no complete JSON"),
        ("values.json", '{"kind": "values", "schema": 99}', "newer than"),
        ("plan.json", "{}", "no plan"),
        ("curves.json", '{"kind": "plan", "schema": 1}', "no sensitivity"),
        ("frontier.json", '{"points": []}', "no frontier"),
        ("frontier.json", '{"kind": "frontier", "schema": 1, "points": []}', "no points"),
        ("frontier.json", '{"kind": "frontier", "schema": 99, "points": [1]}', "newer than"),
        ("measurements.json", '{"dense": {"accuracy": 1}}', "damaged"),
        ("measurements.json", "{}", "no network"),
    ],
)
def test_a_folder_that_is_no_run_yet_or_damaged_is_refused(
    tmp_path: Path, scores: sp.Scores, file: str | None, text: str, told: str
) -> None:
    run = tmp_path / "run"
    if file in (None, "journal.sqlite"):
        run.mkdir()
    else:
        saved(run, scores)
    if file is not None:
        (run / file).write_text(text)
    with pytest.raises(sp.InputError, match=told) as caught:
        read_run(run)
    assert str(run) in str(caught.value)
