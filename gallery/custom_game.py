"""A game of your own: the trees of a random forest are players, and the forest is pruned to the best of them.

Anything that maps a boolean matrix (coalition, player) to numbers is a game; no network is needed. Here the worth of a
coalition of trees is the accuracy of their vote on held-out digits.

    python gallery/custom_game.py [--quick] [--out DIR]
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import train_test_split

import shaprune as sp


def main() -> None:
    parser = argparse.ArgumentParser(description="Prune a random forest with Shapley values.")
    parser.add_argument("--quick", action="store_true", help="20 trees instead of 60")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for custom_game.png")
    options = parser.parse_args()
    n_trees = 20 if options.quick else 60

    images, labels = load_digits(return_X_y=True)
    images, test_images, labels, test_labels = train_test_split(images, labels, test_size=600, random_state=0)
    images, held_out, labels, held_out_labels = train_test_split(images, labels, test_size=500, random_state=0)
    forest = RandomForestClassifier(n_trees, max_depth=6, random_state=0).fit(images, labels)

    def votes(rows: np.ndarray) -> np.ndarray:
        """(trees, examples, classes): what every tree says."""
        return np.stack([tree.predict_proba(rows) for tree in forest.estimators_])

    said, said_of_test = votes(held_out), votes(test_images)

    def worth(kept: np.ndarray, said: np.ndarray = said, truth: np.ndarray = held_out_labels) -> np.ndarray:
        """(coalitions, trees) bool -> (coalitions,) accuracy of the trees that are kept; nobody gets a tenth."""
        right = [(said[row].sum(0).argmax(1) == truth).mean() if row.any() else 0.1 for row in kept]
        return np.array(right)

    game = sp.Game.from_function(worth, n_players=n_trees)
    values = sp.estimate(game, "permutation", max_evaluations=200 * (n_trees + 1), seed=0)
    best = values.ranking()[::-1]
    print(f"{values.n_evaluations:,} evaluations, efficiency gap {values.efficiency_gap:.1e}")
    print(f"best tree: {best[0]}, {values.value[best[0]]:.4f} +- {2 * values.stderr[best[0]]:.4f} of accuracy")

    def curve(order: np.ndarray) -> np.ndarray:
        """Test accuracy of the first 1, 2, ... trees of an order."""
        first = np.argsort(order)[None, :] <= np.arange(n_trees)[:, None]
        return worth(first, said_of_test, test_labels)

    ours = curve(best)
    others = np.stack([curve(np.random.default_rng(seed).permutation(n_trees)) for seed in range(20)])
    for share in (0.1, 0.25, 0.5):
        k = max(1, round(share * n_trees)) - 1
        print(f"{k + 1:3d} of {n_trees} trees: the most valuable {ours[k]:.3f}, random {others[:, k].mean():.3f}")
    print(f"{n_trees:3d} of {n_trees} trees: {ours[-1]:.3f}")

    figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
    axis.fill_between(range(1, n_trees + 1), others.min(0), others.max(0), color="#cbd5e1", label="random, 20 orders")
    axis.plot(range(1, n_trees + 1), ours, color="#2563eb", label="most valuable trees")
    axis.set(xlabel="trees kept", ylabel="test accuracy")
    axis.legend()
    figure.savefig(options.out / "custom_game.png", dpi=80)


if __name__ == "__main__":
    main()
