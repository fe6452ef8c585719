"""Models of ``transformers`` with tiny configurations and random weights. The one file that imports it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from architectures.entry import CLASSES, OUTPUT, Entry, Inputs, seeded, tokens
from shaprune.errors import InputError

WORDS, LENGTH = 30, 6
_SMALL = {
    "vocab_size": WORDS,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "intermediate_size": 20,
    "max_position_embeddings": 12,
    "num_attention_heads": 4,
    "initializer_range": 0.25,  # as large as after training in such narrow layers
}


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise InputError("this network needs transformers: pip install 'shaprune[transformers]'") from error
    return transformers


def bert() -> nn.Module:
    """BERT (Devlin et al. 2019) with a classifier on the pooled first token."""
    t = _transformers()
    config = t.BertConfig(**_SMALL, num_labels=CLASSES)
    return t.BertForSequenceClassification(config)  # type: ignore[no-any-return]


def minilm() -> nn.Module:
    """The encoder of MiniLM sentence transformers: BERT without pooler, whose hidden states are averaged outside."""
    t = _transformers()
    return t.BertModel(t.BertConfig(**_SMALL), add_pooling_layer=False)  # type: ignore[no-any-return]


def gpt2() -> nn.Module:
    """GPT-2 (Radford et al. 2019): transposed linear layers, queries, keys and values from one of them, tied head."""
    t = _transformers()
    config = t.GPT2Config(**_SMALL, n_inner=20, bos_token_id=0, eos_token_id=0, use_cache=False)
    return t.GPT2LMHeadModel(config)  # type: ignore[no-any-return]


def llama() -> nn.Module:
    """Llama (Touvron et al. 2023): grouped queries, rotary positions, gated feed-forward blocks, RMSNorm."""
    t = _transformers()
    config = t.LlamaConfig(**_SMALL, num_key_value_heads=2, use_cache=False)
    return t.LlamaForCausalLM(config)  # type: ignore[no-any-return]


def phi3() -> nn.Module:
    """Phi-3 (Abdin et al. 2024): queries, keys and values from one layer, gates and values from another."""
    t = _transformers()
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = t.Phi3Config(**_SMALL, **ends, num_key_value_heads=2, use_cache=False)
    return t.Phi3ForCausalLM(config)  # type: ignore[no-any-return]


def glm() -> nn.Module:
    """GLM-4: gates and values from one layer, rotary positions on half of a head."""
    t = _transformers()
    config = t.GlmConfig(**_SMALL, pad_token_id=0, num_key_value_heads=2, head_dim=4, use_cache=False)
    return t.GlmForCausalLM(config)  # type: ignore[no-any-return]


def modernbert() -> nn.Module:
    """ModernBERT (Warner et al. 2024): gated feed-forward from one layer, local and global attention."""
    t = _transformers()
    small = {key: value for key, value in _SMALL.items() if key != "initializer_range"}
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2}
    return t.ModernBertForSequenceClassification(t.ModernBertConfig(**small, **ends, num_labels=CLASSES))  # type: ignore[no-any-return]


def _words(batch: int) -> dict[str, Any]:
    ids = tokens(batch, LENGTH, entries=WORDS)
    mask = ids.new_ones(ids.shape)
    mask[:, -1] = 0  # one word of padding
    return {"input_ids": ids, "attention_mask": mask}


def _ids(batch: int) -> dict[str, Any]:
    return {"input_ids": tokens(batch, LENGTH, entries=WORDS)}


def _entry(
    family: str,
    note: str,
    build: Callable[[], nn.Module],
    players: dict[str, int],
    skips: dict[str, str],
    inputs: Inputs = _words,
    classes: int | None = None,
) -> Entry:
    return Entry(family, note, seeded(build), inputs, players, skips, classes, needs="transformers", onnx="dynamo")


ENTRIES = {
    "bert": _entry(
        "BERT (transformers)",
        "attention mask, pooler, dict inputs and outputs",
        bert,
        {"hidden channel": 16, "head": 8, "neuron": 56},
        {"classifier": OUTPUT},
        classes=CLASSES,
    ),
    "minilm": _entry(
        "MiniLM (transformers)",
        "sentence encoder: the hidden states are the output",
        minilm,
        {"head": 8, "neuron": 40},
        {"*embeddings": OUTPUT, "*.output.dense": OUTPUT},
    ),
    "gpt2": _entry(
        "GPT-2 (transformers)",
        "Conv1D layers, fused queries, keys and values, tied output layer",
        gpt2,
        {"hidden channel": 16, "head": 8, "neuron": 40},
        {"lm_head": OUTPUT},
        _ids,
    ),
    "llama": _entry(
        "Llama (transformers)",
        "grouped queries leave with their keys and values; gated feed-forward",
        llama,
        {"hidden channel": 16, "head": 4, "neuron": 40},
        {"lm_head": OUTPUT},
        _ids,
    ),
    "phi3": _entry(
        "Phi-3 (transformers)",
        "one layer for gates and values of a feed-forward block, one for queries, keys and values",
        phi3,
        {"hidden channel": 16, "head": 4, "neuron": 40},
        {"lm_head": OUTPUT},
        _ids,
    ),
    "glm": _entry(
        "GLM-4 (transformers)",
        "one layer for gates and values of a feed-forward block; grouped queries",
        glm,
        {"hidden channel": 16, "head": 4, "neuron": 40},
        {"lm_head": OUTPUT},
        _ids,
    ),
    "modernbert": _entry(
        "ModernBERT (transformers)",
        "one layer for gates and values; local and global attention",
        modernbert,
        {"hidden channel": 32, "head": 8, "neuron": 40},
        {"classifier": OUTPUT},
        classes=CLASSES,
    ),
}
