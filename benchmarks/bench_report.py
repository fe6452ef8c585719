"""The interactive report of ResNet-56: how long it takes to write, to open, and to follow the slider.

Projection shortcuts, so that the residual streams are players, too: 1,120 of them. Weights are random and values made
up: none of the numbers here depends on what they are. Opening and sliding are timed by the browser itself, headless, in
a window of 1200 x 1000 and on a screen of 400 x 800 pixels; every step of the slider goes at least one player further,
and its time runs until the page has been laid out ("handler"), and until the frame after all plots have followed
("frame", which includes waiting for the next frame, up to 17 ms).

    python benchmarks/bench_report.py
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import write
from torch import Tensor, nn
from torch.nn import functional as F

import shaprune as sp
from shaprune.planning.sensitivity_curves import Sensitivity, SensitivityCurve
from shaprune.values.result import Values

OPENINGS, STEPS = 5, 100
SIZES = {"desk": (1200, 1000), "phone": (400, 800)}
SLIDE = """async (steps) => {
    const slider = document.getElementById("budget");
    const [low, high] = [Number(slider.min), Number(slider.max)];
    const found = { handler: [], frame: [] };
    for (let i = 0; i <= steps; i++) {
        const start = performance.now();
        slider.value = String(Math.round(high - ((high - low) * i) / steps));
        slider.dispatchEvent(new Event("input", { bubbles: true }));
        document.body.offsetHeight;
        found.handler.push(performance.now() - start);
        await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
        found.frame.push(performance.now() - start);
    }
    return found;
}"""


class Block(nn.Module):
    """Two 3x3 convolutions, and a 1x1 convolution on the shortcut where the width grows."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        stride = 1 if n_in == n_out else 2
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.shortcut = nn.Identity() if n_in == n_out else nn.Conv2d(n_in, n_out, 1, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def resnet56() -> nn.Module:
    widths = [16] * 10 + [32] * 9 + [64] * 9
    blocks = [Block(a, b) for a, b in pairwise(widths)]
    stem = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)).eval()


def made_up(players: sp.Players) -> tuple[sp.Scores, Sensitivity]:
    rng = np.random.default_rng(0)
    values, curves = {}, {}
    for group in players.groups:
        n = len(group)
        value = rng.gamma(1.0, 0.01, n)
        values[group.name] = Values(
            value, 0.1 * value, 50_000, "permutation", 0.0, "default", 0.93, 0.1, np.full(n, 50), efficient=True
        )
        removed = np.unique(np.linspace(0, n, 17).astype(np.int64))
        curves[group.name] = SensitivityCurve(
            values[group.name].ranking(), removed, 0.93 - 0.1 * (removed / n) ** 3 * rng.random()
        )
    return sp.Scores(players, values, "accuracy"), Sensitivity(curves, "accuracy", 1000)


def spread(numbers: list[float]) -> dict[str, float]:
    return {
        "median": round(float(np.median(numbers)), 3),
        "p95": round(float(np.quantile(numbers, 0.95)), 3),
        "max": round(max(numbers), 3),
    }


def driven(file: Path) -> dict[str, Any]:
    from playwright.sync_api import sync_playwright

    found: dict[str, Any] = {}
    path = next(p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n)))
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        found["browser"] = browser.version
        for name, (width, height) in SIZES.items():
            usable, first, drawn = [], [], []
            for _ in range(OPENINGS):
                page = browser.new_page(viewport={"width": width, "height": height})
                start = time.perf_counter()
                page.goto(file.as_uri())  # the slider works from here on
                usable.append(time.perf_counter() - start)
                page.wait_for_selector("#plot-values .main-svg", state="attached")
                first.append(time.perf_counter() - start)
                page.wait_for_selector("html[data-plots=drawn]", state="attached")
                drawn.append(time.perf_counter() - start)
                if len(usable) < OPENINGS:
                    page.close()
            page.evaluate(SLIDE, 10)  # warm
            slid = page.evaluate(SLIDE, STEPS)
            found[name] = {
                "seconds_until_usable": spread(usable),
                "seconds_until_values_are_drawn": spread(first),
                "seconds_until_all_plots": spread(drawn),
                "slider_handler_ms": spread(slid["handler"]),
                "slider_frame_ms": spread(slid["frame"]),
            }
            page.close()
        browser.close()
    return found


def main() -> None:
    started = time.perf_counter()
    torch.manual_seed(0)
    players = sp.find_players(resnet56(), torch.randn(2, 3, 32, 32))
    scores, curves = made_up(players)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scores.save(folder / "values.json")
        curves.save(folder / "curves.json")
        command = [
            str(Path(sys.executable).with_name("shaprune")),
            "report",
            str(folder),
            "--out",
            str(folder / "report.html"),
        ]
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            subprocess.run([*command, "--overwrite"], check=True, capture_output=True)
            seconds.append(time.perf_counter() - start)
        results = {
            "load_average": round(os.getloadavg()[0], 1),
            "players": players.n,
            "groups": len(players.groups),
            "command_seconds": spread(seconds),
            "megabytes": round((folder / "report.html").stat().st_size / 1e6, 2),
            **driven(folder / "report.html"),
        }
    write("report", results, started)


if __name__ == "__main__":
    main()
