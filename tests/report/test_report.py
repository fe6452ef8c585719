"""The report: what it tells, that it stands alone, and that its curves are those of real removal."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import shaprune as sp
from shaprune.deploy.measure import Latency, Measurement, accuracy
from shaprune.errors import InputError
from shaprune.report.comparison import compared, latency_setting, to_json
from shaprune.report.page import Content, page
from shaprune.report.removal_curves import POINTS, RANDOM_ORDERS, Curves, removal_curves, removal_order

Batches = list[tuple[Tensor, Tensor]]
VOID = {"meta", "br", "hr", "img", "input", "link"}


class Strict(HTMLParser):
    """Fails where tags do not nest; remembers tags, attributes and the text outside styles."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


def parsed(html: str) -> Strict:
    parser = Strict()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    return parser


@pytest.fixture(scope="module")
def network() -> tuple[nn.Module, Batches]:
    """A small untrained network with a layer of 500, and labels that it mostly gets right."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 500), nn.ReLU(), nn.Linear(500, 4)
        ).eval()
        inputs = torch.randn(64, 1, 8, 8)
    with torch.no_grad():
        labels = model(inputs).argmax(1)
    labels[:6] = (labels[:6] + 1) % 4
    return model, [(inputs, labels)]


@pytest.fixture(scope="module")
def scores(network: tuple[nn.Module, Batches]) -> sp.Scores:
    model, batches = network
    players = sp.find_players(model, batches[0][0][:2])
    return sp.score(model, players, batches, "fidelity", max_evaluations=40_000)


@pytest.fixture(scope="module")
def plan(scores: sp.Scores) -> sp.Plan:
    return sp.plan(scores, sp.Budget(macs=0.5))


@pytest.fixture(scope="module")
def curves(network: tuple[nn.Module, Batches], scores: sp.Scores) -> Curves:
    model, batches = network
    return removal_curves(model, scores.players, scores, batches)


@pytest.fixture
def measurements() -> dict[str, Measurement]:
    return {
        "dense": Measurement(0.9, 1000, 20_000, Latency(2.0, 1.5, 3.0), 4_100),
        "raw": Measurement(0.5, 400, 9_000, Latency(1.0, 0.9, 1.1), 1_700),
        "pruned": Measurement(0.89, 400, 9_000, Latency(1.0, 0.9, 1.1), 1_700),
    }


# --- the page ---


def test_the_report_is_one_file_that_needs_nothing_else(
    scores: sp.Scores, plan: sp.Plan, curves: Curves, measurements: dict[str, Measurement]
) -> None:
    html = page(Content("a report", scores, plan, curves, measurements, "8 images, 1 thread", {"train": 1.25}))
    found = parsed(html)
    assert html.startswith("<!DOCTYPE html>")
    assert len(html) < 8_000_000
    assert not re.search(r"https?:|xlink:", html)
    assert not {"script", "link", "iframe", "img", "object"} & {tag for tag, _ in found.tags}
    for _, attributes in found.tags:
        assert "src" not in attributes
        assert (attributes.get("href") or "#").startswith("#")
    assert not re.search(r"url\((?!#)|@import", html)
    assert "prefers-color-scheme: dark" in html
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in found.tags


def test_every_reference_inside_the_page_exists_once(scores: sp.Scores, plan: sp.Plan, curves: Curves) -> None:
    html = page(Content("a report", scores, plan, curves))
    ids = re.findall(r' id="([^"]*)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', html)) == set(ids)
    assert re.search(r"#0\d0\d0\d", html) is None  # a stand-in for a colour that was not replaced
    assert set(re.findall(r"var\(--(\w+)\)", html)) <= set(re.findall(r"--(\w+):", html))


def test_it_tells_every_group_every_reason_and_the_diagnostics(
    scores: sp.Scores, plan: sp.Plan, curves: Curves, measurements: dict[str, Measurement]
) -> None:
    found = parsed(page(Content("a report", scores, plan, curves, measurements, "8 images, 1 thread")))
    for group in scores.players.groups:
        assert f"{int(plan.kept[group.indices].sum()):,} of {len(group):,} stay" in found.text
        assert f"{scores[group.name].n_evaluations:,}" in found.text
        assert scores[group.name].stopped_by in found.text
    for skipped in scores.players.skipped:
        assert skipped.reason in found.text
    figures = [attributes for tag, attributes in found.tags if tag == "svg"]
    assert len(figures) == 1 + len(scores.players.groups)
    labels = [attributes["aria-label"] or "" for attributes in figures]
    assert all(attributes["role"] == "img" for attributes in figures)
    assert all(any(f"Values of {group.name}:" in label for label in labels) for group in scores.players.groups)
    for told in ("90.00%", "50.00%", "89.00%", "-1.00 points", "-60.0 %", "2.00 ms", "1.50 to 3.00", "fidelity"):
        assert told in found.text


def test_without_a_plan_or_measurements_it_tells_what_there_is(scores: sp.Scores, plan: sp.Plan) -> None:
    text = parsed(page(Content("values only", scores))).text
    assert "no plan was made yet" in text
    assert "Before and after" not in text
    assert "Accuracy as players leave" not in text
    text = parsed(page(Content("with a plan", scores, plan))).text
    assert f"{plan.cost['macs']:,.0f}" in text
    assert "nothing has been cut" in text


def test_names_are_escaped_and_unknown_errors_drawn(scores: sp.Scores) -> None:
    conv = replace(scores["0"], stderr=np.full(6, np.inf))
    odd = sp.Scores(scores.players, {**scores.by_group, "0": conv}, "<b>worth</b>", notes=("1 < 2",))
    found = parsed(page(Content("<script>alert(1)</script>", odd)))
    assert "<script>alert(1)</script>" in found.text
    assert "script" not in {tag for tag, _ in found.tags}
    assert "<b>worth</b>" in found.text
    assert "1 < 2" in found.text
    assert "unknown" in found.text


def test_the_same_content_gives_the_same_bytes(scores: sp.Scores, plan: sp.Plan, curves: Curves) -> None:
    content = Content("a report", scores, plan, curves)
    assert page(content) == page(content)


def test_a_plan_of_other_players_is_refused(scores: sp.Scores) -> None:
    players = sp.find_players(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.randn(2, 4))
    other = sp.Plan.from_coalition(players, [True, False, True])
    with pytest.raises(InputError, match="different players"):
        page(Content("a report", scores, other))


# --- the comparison ---


def test_the_comparison_is_the_same_for_people_and_machines(measurements: dict[str, Measurement]) -> None:
    header, *rows = compared(measurements, "8 images, cuda")
    assert header == ("", "dense", "raw", "pruned", "change")
    assert rows[0] == ("test accuracy", "90.00%", "50.00%", "89.00%", "-1.00 points")
    assert ("latency, 8 images, cuda", "2.00 ms", "1.00 ms", "1.00 ms", "-50.0 %") in rows
    assert {len(row) for row in rows} == {5}
    assert {len(row) for row in compared({"dense": measurements["dense"]}, "")} == {2}
    assert to_json(measurements["dense"]) == {
        "accuracy": 0.9,
        "parameters": 1000,
        "macs": 20_000,
        "latency_ms": 2.0,
        "latency_spread_ms": [1.5, 3.0],
        "latency_on": {"device": "cpu", "threads": 1, "examples": 1, "compiled": None},
        "bytes": 4_100,
    }


def test_an_accuracy_that_was_not_measured_is_left_out(measurements: dict[str, Measurement]) -> None:
    blind = {name: replace(m, accuracy=None) for name, m in measurements.items()}
    assert not any("accuracy" in row[0] for row in compared(blind, ""))


def test_the_setting_of_a_latency() -> None:
    assert latency_setting(1, "cpu", 1) == "1 image, 1 thread"
    assert latency_setting(128, "cpu", 2) == "128 images, 2 threads"
    assert latency_setting(128, "cuda:0", 2) == "128 images, cuda:0"


# --- the curves ---


def test_the_curves_are_those_of_real_removal(
    network: tuple[nn.Module, Batches], scores: sp.Scores, curves: Curves
) -> None:
    model, batches = network
    assert set(curves.accuracy) == {"values", "weight norm", "random"}
    assert curves.accuracy["random"].shape == (RANDOM_ORDERS, POINTS)
    assert curves.n_examples == 64
    assert curves.removed[0] == 0
    assert curves.removed[-1] == scores.players.n - len(scores.players.groups)
    for rows in curves.accuracy.values():
        np.testing.assert_allclose(rows[:, 0], accuracy(model, batches))
    order = removal_order(scores.players, scores)
    for point in (3, POINTS - 1):
        kept = np.ones(scores.players.n, dtype=bool)
        kept[order[: curves.removed[point]]] = False
        small = sp.prune(model, sp.Plan.from_coalition(scores.players, kept), batches[0][0][:4])
        np.testing.assert_allclose(curves.accuracy["values"][0, point], accuracy(small, batches))


def test_the_least_valuable_leave_first_and_the_best_of_every_group_last(scores: sp.Scores) -> None:
    order = removal_order(scores.players, scores)
    assert sorted(order) == list(range(scores.players.n))
    value = np.concatenate([scores[g.name].value for g in scores.players.groups])
    n_last = len(scores.players.groups)
    assert (np.diff(value[order[:-n_last]]) >= 0).all()
    best = {int(g.indices[scores[g.name].value.argmax()]) for g in scores.players.groups}
    assert set(order[-n_last:].tolist()) == best


def test_the_random_orders_follow_the_seed(network: tuple[nn.Module, Batches], scores: sp.Scores) -> None:
    model, batches = network
    first, again, other = (removal_curves(model, scores.players, scores, batches, seed=s) for s in (0, 0, 9))
    assert (first.accuracy["random"] == again.accuracy["random"]).all()
    assert (first.accuracy["random"] != other.accuracy["random"]).any()
    assert (first.accuracy["values"] == other.accuracy["values"]).all()
