"""Blocks of networks that generate word by word: what the others read from a key-value cache stays right."""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import shaprune as sp
from shaprune.players.players import Players

pytestmark = pytest.mark.usefixtures("one_thread")

ENDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 12,
    "initializer_range": 0.3,
    **ENDS,
}
WINDOW = {"num_hidden_layers": 4, "head_dim": 8, "sliding_window": 5, "max_position_embeddings": 64}
WORDS = torch.randint(3, 40, (2, 14), generator=torch.Generator().manual_seed(0))


def _gemma(t: Any) -> nn.Module:
    return t.Gemma2ForCausalLM(t.Gemma2Config(**SIZES, **WINDOW))  # sliding, full, sliding, full


def _turned(t: Any) -> nn.Module:
    kinds = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    return t.Qwen3ForCausalLM(t.Qwen3Config(**SIZES, **WINDOW, use_sliding_window=True, layer_types=kinds))


def _gpt_oss(t: Any) -> nn.Module:
    experts = {"num_local_experts": 3, "num_experts_per_tok": 2, "rope_parameters": {"rope_type": "default"}}
    return t.GptOssForCausalLM(t.GptOssConfig(**SIZES, **WINDOW, **experts))


def _lfm(t: Any) -> nn.Module:
    own = {"full_attn_idxs": [1, 3], "block_auto_adjust_ff_dim": False}
    return t.Lfm2ForCausalLM(t.Lfm2Config(**SIZES, num_hidden_layers=4, **own))


def _jamba(t: Any) -> nn.Module:
    own = {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 4, "use_mamba_kernels": False}
    experts = {"num_experts": 1, "num_experts_per_tok": 1}
    return t.JambaForCausalLM(t.JambaConfig(**SIZES, num_hidden_layers=3, **own, **experts))


def _gpt_neo(t: Any) -> nn.Module:
    own = {"num_layers": 4, "num_heads": 4, "hidden_size": 32, "intermediate_size": 12, "window_size": 5}
    kinds = {"attention_types": [[["global", "local"], 2]]}
    return t.GPTNeoForCausalLM(t.GPTNeoConfig(vocab_size=40, max_position_embeddings=32, **own, **kinds, **ENDS))


def _t5(t: Any) -> nn.Module:
    own = {"vocab_size": 40, "d_model": 16, "d_kv": 4, "d_ff": 12, "num_layers": 3, "num_heads": 4}
    return t.T5ForConditionalGeneration(t.T5Config(**own, decoder_start_token_id=0))


def made(make: Callable[[Any], nn.Module]) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    return make(transformers).eval()


def given(model: nn.Module) -> dict[str, Tensor]:
    encoded = {"decoder_input_ids": WORDS} if "T5" in type(model).__name__ else {}
    return {"input_ids": WORDS, **encoded}


def cached(model: nn.Module, cache: Any = None, first: int = 7) -> float:
    """Largest relative difference of logits, word by word with a cache, to those of one pass without."""
    words = given(model)
    key = list(words)[-1]
    with torch.no_grad():
        whole = model(**words, use_cache=False).logits
        out = model(**{**words, key: WORDS[:, :first]}, past_key_values=cache, use_cache=True)
        parts = [out.logits]
        for k in range(first, WORDS.shape[1]):
            one = {**words, key: WORDS[:, k : k + 1]}
            out = model(**one, past_key_values=out.past_key_values, use_cache=True)
            parts.append(out.logits)
    return float((torch.cat(parts, 1) - whole).abs().max() / whole.abs().max())


def all_rows(players: Players) -> list[np.ndarray[Any, Any]]:
    return [np.array(row, dtype=bool) for row in product([False, True], repeat=players.n) if not all(row)]


@pytest.mark.parametrize("make", [_gemma, _turned, _gpt_oss, _lfm, _jamba, _gpt_neo])
def test_any_blocks_may_leave_a_network_that_generates_with_a_cache(make: Callable[[Any], nn.Module]) -> None:
    model = made(make)
    assert cached(model) < 1e-4
    players = sp.find_players(model, {"input_ids": WORDS[:, :8]}, unit="block")
    assert players.n == model.config.num_hidden_layers
    assert not players.skipped
    for row in all_rows(players):
        small = sp.prune(model, sp.Plan.from_coalition(players, row), {"input_ids": WORDS[:, :8]})
        assert cached(small) < 1e-4, row


def test_a_static_cache_stays_right() -> None:
    transformers = pytest.importorskip("transformers")
    model = made(_gemma)
    players = sp.find_players(model, {"input_ids": WORDS[:, :8]}, unit="block")
    plan = sp.Plan.from_coalition(players, np.array([False, True, False, True]))
    small = sp.prune(model, plan, {"input_ids": WORDS[:, :8]})
    for early in (False, True):
        cache = transformers.StaticCache(config=model.config, max_cache_len=16)
        if early:
            cache.early_initialization(2, 2, 8, torch.float32, torch.device("cpu"))
        assert cached(small, cache) < 1e-4


def test_generated_words_are_those_without_a_cache(tmp_path: Path) -> None:
    model = made(_gpt_oss)
    words = {"input_ids": WORDS[:, :8]}
    players = sp.find_players(model, words, unit="block")
    plan = sp.Plan.from_coalition(players, np.array([False, True, False, True]))
    sp.save(sp.prune(model, plan, words), plan, tmp_path / "small")
    small = sp.load(tmp_path / "small", build=lambda: made(_gpt_oss))
    ours = small.generate(**words, max_new_tokens=6, do_sample=False)
    for k in range(8, 14):
        with torch.no_grad():
            best = small(input_ids=ours[:, :k], use_cache=False).logits[:, -1].argmax(-1)
        assert torch.equal(ours[:, k], best)


def test_what_a_block_only_hands_on_is_handed_on_without_it() -> None:
    """The blocks of T5 return the position biases that the first of them makes."""
    model = made(_t5)
    players = sp.find_players(model, given(model), unit="block")
    assert players.names == ("encoder.block.1", "encoder.block.2", "decoder.block.1", "decoder.block.2")
    reasons = {s.name: s.reason for s in players.skipped}
    assert set(reasons) == {"encoder.block.0", "decoder.block.0"}
    assert "code may read what it returns beside its first output" in reasons["encoder.block.0"]
    assert Players.from_json(players.to_json()).layers == players.layers
    for row in ([False, True, False, True], [True, False, False, False]):
        small = sp.prune(model, sp.Plan.from_coalition(players, np.array(row)), given(model))
        assert cached(small) < 1e-4


class Held:
    """A cache of sums over the words so far, one per layer; the first says how many words there are."""

    def __init__(self) -> None:
        self.sums: dict[int, Tensor] = {}
        self.seen: dict[int, int] = {}

    def get_seq_length(self) -> int:
        return self.seen.get(0, 0)


class Summing(nn.Module):
    """Adds a running mean over the words; the number of its entry has a name of its own."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.fc = number, nn.Linear(6, 6)

    def forward(self, x: Tensor, count: Tensor, cache: Held | None) -> Tensor:
        sums = self.fc(x).cumsum(1)
        if cache is not None:
            sums = sums + cache.sums.get(self.number, torch.zeros(len(x), 1, 6))
            cache.sums[self.number] = sums[:, -1:]
            cache.seen[self.number] = cache.seen.get(self.number, 0) + x.shape[1]
        return x + sums / count


class Generating(nn.Module):
    """Three such layers, which read the number of words from the first entry."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layers = nn.Embedding(40, 6), nn.ModuleList(Summing(i) for i in range(3))
        self.head = nn.Linear(6, 5)

    def forward(
        self, input_ids: Tensor, past_key_values: Held | None = None, use_cache: bool = False
    ) -> dict[str, Any]:
        cache = (past_key_values or Held()) if use_cache else None
        start = 0 if cache is None else cache.get_seq_length()
        count = torch.arange(start + 1, start + 1 + input_ids.shape[1]).view(1, -1, 1)
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x, count, cache)
        return {"logits": self.head(x), "past_key_values": cache}


def test_a_block_whose_entry_of_the_cache_cannot_be_kept_is_refused_before_it_is_scored() -> None:
    torch.manual_seed(0)
    players = sp.find_players(Generating().eval(), WORDS[:, :6], unit="block")
    assert players.names == ("layers.1", "layers.2")
    (skipped,) = players.skipped
    assert skipped.name == "layers.0"
    assert skipped.reason.startswith("word by word with a key-value cache it gives other outputs")


class Meeting(nn.Module):
    """Three layers; the network breaks without the first two."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.head = nn.ModuleList(nn.Linear(6, 6) for _ in range(5)), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        given = x
        for layer in self.layers[:2]:
            x = layer(x)
        if x is given:
            raise ValueError("both are gone")
        for layer in self.layers[2:]:
            x = layer(x)
        return self.head(x)


def test_blocks_are_tried_together_in_several_draws() -> None:
    torch.manual_seed(0)
    players = sp.find_players(Meeting().eval(), torch.randn(2, 6), unit="block")
    assert players.n == 4
    (skipped,) = players.skipped
    assert skipped.name in ("layers.0", "layers.1")
    assert "both are gone" in skipped.reason
