"""Draw the picture of the README from results/compress.json: ``python benchmarks/figures.py``."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib
from matplotlib import pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
SHOWN = {
    "reconstruction, curves": ("shaprune: reconstruction, measured curves", "#1a56a8"),
    "taylor, global": ("Taylor, global (needs labels)", "#c25b13"),
    "lamp, global": ("LAMP, global", "#7a5195"),
    "weight_norm, uniform": ("weight norm, uniform", "#4d7c3a"),
    "random 0, uniform": ("random, uniform", "#8a8a8a"),
}


def main() -> None:
    results = json.loads((ROOT / "benchmarks" / "results" / "compress.json").read_text())["results"]
    dense = results["dense accuracy"]
    matplotlib.rcParams.update({"svg.hashsalt": "shaprune", "font.size": 10, "svg.fonttype": "none"})
    figure, axes = plt.subplots(figsize=(8.6, 3.2), layout="constrained")
    for name, (label, color) in SHOWN.items():
        rows = {float(key.split("%")[0]) / 100: row for key, row in results["table"][name].items()}
        shares = sorted(rows)
        for kind, style in (("refitted", "-"), ("raw", ":")):
            worths = [rows[share][kind] for share in shares]
            axes.plot([*shares, 1], [*worths, dense], style, color=color, marker="o", ms=4, lw=1.8)
        axes.plot([], [], color=color, label=label)
    axes.plot([], [], "-", color="black", label="refitted on 768 images, no labels")
    axes.plot([], [], ":", color="black", label="as cut")
    axes.set(xlabel="multiply-adds kept", ylabel="test accuracy", xlim=(0.27, 1.01), ylim=(0, 1))
    axes.xaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1))
    axes.grid(alpha=0.25)
    figure.legend(frameon=False, fontsize=8.5, loc="outside right center")
    figure.savefig(ROOT / "docs" / "img" / "resnet56.svg", metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    main()
