"""MiniLM, a sentence encoder: what its layers are worth, and the encoder without a quarter of its heads and neurons.

    python gallery/minilm.py --model FOLDER --sentences FILE [--out DIR]     # needs shaprune[transformers]
    python gallery/minilm.py --quick        # a tiny BERT with random weights, and random tokens

FOLDER: all-MiniLM-L6-v2 or another BERT with its tokenizer; FILE: one sentence per line. No labels, no training.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, BertConfig, BertModel

import shaprune as sp


class Embedder(nn.Module):
    """Mean of the token embeddings, of length one."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(N, T) tokens -> (N, width)."""
        tokens = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return nn.functional.normalize((tokens * attention_mask[..., None]).sum(1), dim=-1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Prune a sentence encoder without labels.")
    parser.add_argument("--model", type=Path, help="folder of the model and its tokenizer")
    parser.add_argument("--sentences", type=Path, help="one per line, some hundreds")
    parser.add_argument("--quick", action="store_true", help="a tiny random network instead")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for minilm.png")
    options = parser.parse_args()
    if options.quick == bool(options.model and options.sentences):
        parser.error("give --model and --sentences, or --quick without them")
    torch.manual_seed(0)
    if options.quick:
        sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
        encoder, ids = BertModel(BertConfig(**sizes), add_pooling_layer=False), torch.randint(50, (200, 8))
        tokens = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    else:
        encoder = BertModel.from_pretrained(options.model, add_pooling_layer=False)
        texts, tokenizer = options.sentences.read_text().splitlines(), AutoTokenizer.from_pretrained(options.model)
        read = tokenizer(texts, padding="max_length", truncation=True, max_length=24, return_tensors="pt")
        tokens = {key: read[key] for key in ("input_ids", "attention_mask")}
    model, n = Embedder(encoder).eval(), len(tokens["input_ids"]) * 3 // 4
    example, scored, fitted = ({key: t[:size] for key, t in tokens.items()} for size in (2, 48, n))
    judged = {key: t[n:] for key, t in tokens.items()}

    layers = sp.find_players(model, example, unit="block")
    values = sp.estimate(sp.NetworkGame(model, layers, [(scored, None)], "fidelity"), "exact")
    for name, value in zip(layers.names, values.value, strict=True):
        print(f"{name:32s} {value:.4f}")  # exact: no standard error
    players = sp.find_players(model, example, unit=("head", "ffn"))
    scores = sp.score(model, players, [(fitted, None)], "fidelity", method="reconstruction")
    plan = sp.plan(scores, sp.Budget(players=0.75), "uniform")
    cut = sp.prune(model, plan, example)
    refitted = sp.recover(cut, model, plan, [(fitted, None)], ("refit",))
    with torch.no_grad():
        close = [(network(**judged) * model(**judged)).sum(1) for network in (cut, refitted)]
    print(f"{players.n:,} heads and neurons; {plan.cost['params'] / players.model_params:.1%} of the parameters stay")
    print(f"cosine with the dense embeddings: cut {close[0].mean():.4f}, refitted {close[1].mean():.4f}")

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    left.bar(range(layers.n), values.value)
    left.set(xlabel="layers", ylabel="Shapley value")
    right.hist(close, bins=30, label=["cut", "refitted"])
    right.legend(title="cosine with the dense embedding")
    figure.savefig(options.out / "minilm.png", dpi=80)


if __name__ == "__main__":
    main()
