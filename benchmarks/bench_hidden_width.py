"""Hidden width of MiniLM: a quarter of it removed without labels, by slicing and by compensated norms; and one budget.

The model, its sentences, and how it is judged are those of `bench_minilm`. The stream is the encoder's own output, so
that a linear map back to the dense embedding stands behind the mean of the tokens: the identity at first, fitted by the
refit. Ranking: mean absolute activation. With `norm="slice"` and `norm="compensated"`, the same refit. Then 30 % fewer
parameters by equal shares of all groups: heads and neurons, and hidden width with them.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from bench_minilm import JUDGED, REFITTED, REMOVED, SCORED, Embedder, loaded, survival
from common import write
from torch import Tensor, nn

import shaprune as sp

PARAMETERS = 0.7  # of the dense network, that one budget leaves
say = partial(print, file=sys.stderr, flush=True)


class MappedBack(Embedder):
    """An embedder behind whose mean of the tokens a linear map stands."""

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__(encoder)
        self.back = nn.Linear(width, width)
        nn.init.eye_(self.back.weight)
        nn.init.zeros_(self.back.bias)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mean = self.summed(input_ids, attention_mask) / attention_mask[..., None].sum(1)
        return F.normalize(self.back(mean), dim=-1)


def main() -> None:
    started = time.perf_counter()
    encoder, part = loaded()
    model = MappedBack(encoder, encoder.config.hidden_size).eval()
    scored, refitted, judged = part(0, SCORED), part(0, REFITTED), part(REFITTED, JUDGED)
    with torch.no_grad():
        dense = model(**judged)
    results: dict[str, Any] = {
        "sentences": {"scored on": SCORED, "refitted on": REFITTED, "judged by": JUDGED},
        "dense parameters": sum(p.numel() for p in model.parameters()),
        "rows": {},
    }

    def judge(name: str, budget: sp.Budget, unit: tuple[str, ...], norm: str = "slice") -> None:
        clock = time.perf_counter()
        players = sp.find_players(model, scored, unit=unit, norm=norm)
        row: dict[str, Any] = {"seconds to find players": round(time.perf_counter() - clock, 1)}
        scores = sp.score(model, players, [(scored, None)], "fidelity", method="activation_mean")
        plan = sp.plan(scores, budget, "uniform")
        small = sp.prune(model, plan, scored)
        row["raw"] = survival(small, judged, dense)
        clock = time.perf_counter()
        small = sp.recover(small, teacher=model, plan=plan, data=[(refitted, None)], steps=("refit",))
        row["seconds to refit"] = round(time.perf_counter() - clock, 1)
        row["refitted"] = survival(small, judged, dense)
        row["parameters"] = sum(p.numel() for p in small.parameters())
        row["multiply-adds"] = plan.cost["macs"]
        results["rows"][name] = row
        say(name, row)
        write("hidden_width", results, started)

    alone, all_but_it = ("hidden",), ("head", "ffn")
    judge("30 % fewer parameters, heads and neurons", sp.Budget(params=PARAMETERS), all_but_it)
    judge(
        "30 % fewer parameters, hidden width, too", sp.Budget(params=PARAMETERS), (*alone, *all_but_it), "compensated"
    )
    for norm in ("slice", "compensated"):
        judge(f"hidden width alone, {norm}", sp.Budget(players=1 - REMOVED), alone, norm)


if __name__ == "__main__":
    main()
