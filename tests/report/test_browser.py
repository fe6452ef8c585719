"""The interactive report in a real Chromium: it loads, the slider decides as `sp.plan` does, and what it saves prunes.

What is seen is compared by structure (what is there, where, how large, how dark), never by pixels. Skipped where there
is no browser, or no playwright to drive it.
"""

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from testkit.browsing import DESK, NEEDS_A_BROWSER, PHONE, Opened, chromium, pages
from testkit.reported import FRONTIER, Residual, curves_of, made_up, many, renamed
from torch import nn

import shaprune as sp
from shaprune.pipeline.feature_maps import feature_maps
from shaprune.planning.limits import Limits
from shaprune.report.content import Content, Evidence
from shaprune.report.interactive import interactive

pytestmark = NEEDS_A_BROWSER
WITHIN = Limits(min_width=2, round_to=2, max_removed={"inner": 0.5})


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """Opens a report, offline; at the end nobody complained, and nothing but the file was asked for."""
    with pages(browser) as open_page:

        def open_it(html: str, size: tuple[int, int] = DESK, scheme: str = "light") -> Opened:
            file = tmp_path / f"report{len(list(tmp_path.glob('report*')))}.html"
            file.write_text(html, encoding="utf-8")
            return open_page(file.as_uri(), size, scheme)

        yield open_it


@pytest.fixture(scope="module")
def model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Residual().eval()


@pytest.fixture(scope="module")
def scores(model: nn.Module) -> sp.Scores:
    return made_up(sp.find_players(model, torch.randn(2, 1, 8, 8)))


@pytest.fixture(scope="module")
def full(model: nn.Module, scores: sp.Scores) -> str:
    """A report with everything in it, pictures included."""
    seen = feature_maps(model, scores.players, scores, torch.rand(2, 1, 8, 8), channels=2)
    return interactive(Content("all of it", scores), Evidence(curves_of(scores), {"ours": FRONTIER}, look=seen))


@pytest.fixture(scope="module")
def limited(scores: sp.Scores) -> str:
    return interactive(Content("with limits", scores), Evidence(within=WITHIN))


def test_it_opens_from_disk_and_draws(opened: Any, full: str) -> None:
    seen = opened(full)
    seen.drawn()
    assert seen.page.title() == "all of it"
    for name in ("values", "frontier", "sensitivity", "error"):
        box = seen.page.locator(f"#plot-{name} svg.main-svg").first.bounding_box()
        assert box["width"] > 500
        assert box["height"] > 200
    broken = seen.page.evaluate("Array.from(document.images).filter(i => !i.naturalWidth).length")
    assert broken == 0
    assert seen.page.locator("img").count() > 20
    assert len(seen.asked) > 0  # the file itself, so that the check of what was asked for can fail


def test_a_script_from_elsewhere_is_refused(opened: Any, full: str) -> None:
    seen = opened(full)
    answer = seen.page.evaluate("fetch('http://127.0.0.1:9/x').then(() => 'came', () => 'refused')")
    assert answer == "refused"
    assert any("Content Security Policy" in text for text in seen.said)
    seen.said.clear()
    seen.asked.clear()


@pytest.mark.parametrize("within", [Limits(), WITHIN])
def test_the_slider_decides_as_sp_plan_does(
    opened: Any, full: str, limited: str, scores: sp.Scores, within: Limits
) -> None:
    players, met = scores.players, 0
    seen = opened(limited if within is WITHIN else full)
    for allocation, resource in product(
        ("global", "value", "uniform", "shapley-layers"), ("macs", "params", "players")
    ):
        seen.page.select_option("#resource", resource)
        seen.page.select_option("#allocation", allocation)
        least = int(seen.page.get_attribute("#budget", "min"))
        for asked in {least, *(s for s in (870, 450) if s > least)}:
            seen.slide(asked)
            theirs = sp.plan(
                scores,
                sp.Budget(**{resource: asked / 1000}),
                allocation,
                limits=sp.options.Limits(
                    min_width=within.min_width, round_to=within.round_to, max_removed=within.max_removed
                ),
            )
            assert seen.exported() == theirs.to_json(), (resource, asked)
            assert seen.text("n-players") == f"{theirs.kept.sum()} of {players.n}"
            assert seen.text("n-params").startswith(f"{theirs.cost['params']:,.0f} (")
            met += 1
    assert met > 24


def test_the_slider_moves_everything(opened: Any, full: str, scores: sp.Scores) -> None:
    seen = opened(full)
    seen.drawn()
    seen.page.select_option("#allocation", "value")
    seen.page.select_option("#group", "-1")

    def state() -> list[Any]:
        return [
            seen.page.locator("#players tr.leaves").count(),
            seen.page.eval_on_selector_all("#groups tbody td:nth-child(3)", "c => c.map(x => +x.textContent)"),
            seen.page.eval_on_selector_all(".bar .fill", "c => c.map(x => +x.getAttribute('width'))"),
            float(seen.text("quality")),
        ]

    def diamond_comes_to(x: float) -> None:
        seen.page.locator("#plot-frontier").scroll_into_view_if_needed()
        seen.becomes(f"Math.abs(document.getElementById('plot-frontier').data.at(-1).x[0] - {x!r}) < 1e-9")

    dots = "document.getElementById('plot-values').data[0].marker.color"
    seen.slide(1000)
    diamond_comes_to(1.0)
    seen.page.locator("#plot-values").scroll_into_view_if_needed()
    seen.becomes(f"new Set({dots}).size === 1")
    leaves, stay, widths, quality = state()
    assert leaves == 0
    assert stay == [len(g) for g in scores.players.groups]
    assert quality == pytest.approx(0.9)
    assert seen.page.is_disabled("#export")
    seen.slide(500)
    theirs = sp.plan(scores, sp.Budget(macs=0.5), "value")
    now = state()
    assert now[0] == (~theirs.kept).sum()
    assert now[1] == [int(theirs.kept[g.indices].sum()) for g in scores.players.groups]
    shares = [now[1][i] / stay[i] for i in range(len(stay))]
    np.testing.assert_allclose([a / b for a, b in zip(now[2], widths, strict=True)], shares, atol=0.01)
    assert now[3] < quality
    diamond_comes_to(theirs.cost["macs"] / scores.players.model_macs)
    seen.page.locator("#plot-values").scroll_into_view_if_needed()
    seen.becomes(f"{dots}.filter((c) => c === {dots}.at(-1)).length === {int((~theirs.kept).sum())}")
    told = seen.page.get_attribute("#budget", "aria-valuetext")
    assert told == f"50.0 % of the multiply-adds: {theirs.kept.sum()} of {scores.players.n} players stay"


def test_what_it_saves_prunes_to_the_predicted_size(opened: Any, full: str, model: nn.Module, tmp_path: Path) -> None:
    seen = opened(full)
    seen.slide(500)
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(seen.saved()))
    plan = sp.Plan.load(file)
    small = sp.prune(model, plan, torch.randn(2, 1, 8, 8))
    count = sum(p.numel() for p in small.parameters())
    assert seen.text("n-params").startswith(f"{count:,} (")
    assert count < sum(p.numel() for p in model.parameters())


def test_a_given_plan_is_where_it_starts(opened: Any, scores: sp.Scores) -> None:
    players = scores.players
    by_hand = np.ones(players.n, dtype=bool)
    by_hand[[1, 3, 8]] = False
    for plan in (sp.plan(scores, sp.Budget(params=0.6)), sp.Plan.from_coalition(players, by_hand)):
        seen = opened(interactive(Content("given", scores, plan)))
        assert seen.page.input_value("#allocation") == "plan"
        assert seen.saved() == {**plan.to_json(), "budget": plan.budget}
        seen.page.press("#budget", "ArrowLeft")  # it can be made smaller
        assert seen.page.input_value("#allocation") == "global"
        seen.slide(700)  # another budget: as the plan was made, where that is a way
        assert seen.page.input_value("#allocation") == "global"
        resource = seen.page.input_value("#resource")
        assert seen.saved() == sp.plan(scores, sp.Budget(**{resource: 0.7})).to_json()


def test_it_is_used_without_a_mouse(opened: Any, full: str, scores: sp.Scores) -> None:
    seen = opened(full)
    keys = seen.page.keyboard
    focus = "document.activeElement.id || document.activeElement.getAttribute('data-groups')"
    order = []
    for _ in range(7):
        keys.press("Tab")
        order.append(seen.page.evaluate(focus))
    assert order[1:6] == ["resource", "allocation", "budget", "export", "0"]
    seen.page.focus("#budget")
    before = seen.text("asked")
    keys.press("ArrowLeft")
    assert seen.text("asked") != before
    seen.page.focus(".bar")
    keys.press("ArrowRight")
    assert seen.page.evaluate(focus) == "1"
    keys.press("Enter")
    name = scores.players.groups[1].name
    assert seen.page.locator("#players tbody th").first.inner_text().startswith(f"{name}[")
    assert seen.page.eval_on_selector_all(".bar", "b => b.map(x => x.getAttribute('aria-pressed'))")[:2] == [
        "false",
        "true",
    ]
    head = seen.page.locator("#players thead th").nth(1)
    assert head.get_attribute("aria-sort") == "descending"
    head.locator("button").focus()
    keys.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    shown = seen.page.eval_on_selector_all(
        "#players tbody td:nth-child(2)", "c => c.map(x => parseFloat(x.textContent))"
    )
    np.testing.assert_allclose(shown, np.sort(scores[name].value), rtol=1e-3)


def structure(seen: Opened) -> list[tuple[str, str]]:
    found = seen.page.evaluate(
        "Array.from(document.querySelectorAll('h1,h2,h3,select,input,button,.plot,table,svg[role=img],.bar'))"
        ".map(e => [e.tagName, e.id || e.textContent.slice(0, 20)])"
    )
    return [tuple(pair) for pair in found]


def luminance(rgb: str) -> float:
    """Relative luminance (WCAG 2.1) of ``rgb(r, g, b)``."""
    parts = [float(x) / 255 for x in rgb[rgb.index("(") + 1 : -1].split(",")[:3]]
    linear = [x / 12.92 if x <= 0.03928 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


@pytest.mark.parametrize("size", [DESK, PHONE])
def test_light_and_dark_on_any_screen(opened: Any, full: str, size: tuple[int, int]) -> None:
    pages = {scheme: opened(full, size, scheme) for scheme in ("light", "dark")}
    for scheme, seen in pages.items():
        seen.drawn()
        wide = seen.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert wide[0] <= wide[1]  # tables scroll, not the page
        back = luminance(seen.page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert (back > 0.8) == (scheme == "light")
        for selector in ("body", ".note", "#export", "dd", "tbody td"):
            ink = luminance(seen.page.eval_on_selector(selector, "e => getComputedStyle(e).color"))
            contrast = (max(ink, back) + 0.05) / (min(ink, back) + 0.05)
            assert contrast > 4.5, (scheme, selector)
        axis = luminance(seen.page.eval_on_selector("#plot-values .xtick text", "e => getComputedStyle(e).fill"))
        assert abs(axis - back) > 0.4
        for control in ("#resource", "#allocation", "#budget", "#export", "#group"):
            box = seen.page.locator(control).bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= size[0]
            assert box["height"] >= 24
        font = seen.page.evaluate("parseFloat(getComputedStyle(document.querySelector('tbody td')).fontSize)")
        assert font >= 13
    assert structure(pages["light"]) == structure(pages["dark"])
    pages["dark"].slide(400)
    assert pages["dark"].saved()["budget"]


def test_the_colours_follow_when_the_light_goes_out(opened: Any, full: str) -> None:
    seen = opened(full)
    seen.drawn()
    fill = "getComputedStyle(document.querySelector('#plot-values .xtick text')).fill"
    before = seen.page.evaluate(fill)
    seen.page.emulate_media(color_scheme="dark")
    seen.becomes(f"{fill} !== {before!r}")
    assert luminance(seen.page.evaluate(fill)) - luminance(before) > 0.4


def test_names_of_layers_are_never_markup(opened: Any, scores: sp.Scores) -> None:
    evil = "<img src=x onerror=document.title='broken'><b>bold</b>"
    players = renamed(scores.players, evil)
    by_group = {g.name: scores[old.name] for g, old in zip(players.groups, scores.players.groups, strict=True)}
    odd = sp.Scores(players, by_group, evil)
    seen = opened(interactive(Content(evil, odd), Evidence(curves_of(odd), {evil: FRONTIER})))
    seen.drawn()
    assert seen.page.title() == evil
    assert seen.page.locator("img, b").count() == 0
    assert seen.page.locator("#players tbody th").first.inner_text().startswith(evil)
    legends = seen.page.eval_on_selector_all("#plot-sensitivity .legendtext", "t => t.map(x => x.textContent)")
    assert evil in legends


def test_a_network_of_many_groups_is_folded_and_answers(opened: Any, scores: sp.Scores) -> None:
    players = many(scores.players, 200)
    one = scores[scores.players.groups[0].name]
    seen = opened(interactive(Content("large", sp.Scores(players, {g.name: one for g in players.groups}, "w"))))
    assert seen.page.locator(".bar").count() == 80
    seen.page.locator(".bar").nth(1).click()
    assert seen.page.locator("#group option:checked").inner_text() == "block1.conv"
    assert seen.page.locator("#groups tbody tr").count() == 200
    seen.page.select_option("#group", "-1")
    assert seen.page.locator("#players tbody tr").count() == 200
    seen.page.click("#more")
    assert seen.page.locator("#players tbody tr").count() == players.n
