"""Hugging Face models: plans that config.json can say, and pruned models that from_pretrained brings back."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import shaprune as sp
from shaprune.builtin.models import build_model
from shaprune.cli.app import app
from shaprune.errors import InputError
from shaprune.planning.limits import Limits
from shaprune.planning.removal_sequences import removal_sequences
from shaprune.planning.scores import Scores
from shaprune.players.hf_fields import HfField, HfFields
from shaprune.players.layer_costs import Layer
from shaprune.players.players import Member, Players, number_groups
from shaprune.values.result import Values

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = {
    "vocab_size": 30,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "intermediate_size": 20,
    "max_position_embeddings": 12,
    "num_attention_heads": 6,
    "initializer_range": 0.25,
}
HEADS = ("num_attention_heads", "num_key_value_heads")


def words(n: int) -> dict[str, Tensor]:
    return {"input_ids": torch.randint(0, 30, (n, 6), generator=torch.Generator().manual_seed(1))}


def pixels(n: int) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))}


def _bert(t: Any) -> nn.Module:
    return t.BertForSequenceClassification(t.BertConfig(**SIZES))


def _gpt2(t: Any) -> nn.Module:
    return t.GPT2LMHeadModel(t.GPT2Config(**SIZES, bos_token_id=0, eos_token_id=0))


def _llama(t: Any) -> nn.Module:
    return t.LlamaForCausalLM(t.LlamaConfig(**SIZES, num_key_value_heads=3))


def _qwen(t: Any) -> nn.Module:
    return t.Qwen2ForCausalLM(t.Qwen2Config(**SIZES, num_key_value_heads=6))


def _vit(t: Any) -> nn.Module:
    return t.ViTForImageClassification(t.ViTConfig(**SIZES, image_size=8, patch_size=4))


def _t5(t: Any) -> nn.Module:
    return t.T5EncoderModel(t.T5Config(d_model=16, d_ff=20, num_layers=2, num_heads=4, d_kv=4, vocab_size=30))


# name -> (model, inputs, the fields of its configuration that count players)
MODELS: dict[str, tuple[Callable[[Any], nn.Module], Callable[[int], dict[str, Tensor]], set[tuple[str, ...]]]] = {
    "bert": (_bert, words, {("intermediate_size",)}),
    "gpt2": (_gpt2, words, {("n_inner",)}),
    "llama": (_llama, words, {("hidden_size",), HEADS, ("intermediate_size",)}),
    "qwen2": (_qwen, words, {HEADS, ("intermediate_size",)}),
    "vit": (_vit, pixels, {("num_attention_heads",), ("intermediate_size",)}),
    "t5": (_t5, words, {("num_heads",), ("d_ff",)}),
}
each_model = pytest.mark.parametrize("name", MODELS)


def made(name: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    return MODELS[name][0](transformers).eval()


@cache
def found(name: str) -> Players:
    return sp.find_players(made(name), MODELS[name][1](2))


def valued(numbers: Any) -> Values:
    array = np.array(numbers, dtype=float)
    ones = np.ones(len(array), dtype=np.int64)
    return Values(array, np.zeros(len(array)), 1, "test", None, "test", None, None, ones)


def drawn(players: Players, seed: int = 0) -> dict[str, Values]:
    rng = np.random.default_rng(seed)
    return {g.name: valued(rng.random(len(g))) for g in players.groups}


def left(plan: sp.Plan) -> dict[str, int]:
    return {g.name: int(plan.kept[g.indices].sum()) for g in plan.players.groups}


def uneven(name: str) -> sp.Plan:
    """One neuron leaves the first feed-forward block, and nothing else."""
    players = found(name)
    assert players.config is not None
    field = next(f for f in players.config.fields if len(f.groups) > 1)
    kept = np.ones(players.n, dtype=bool)
    kept[players.group(field.groups[0]).indices[0]] = False
    return sp.Plan.from_coalition(players, kept)


# --- what a configuration can say, found by trying ---


@each_model
def test_the_fields_that_count_players_are_found(name: str) -> None:
    config = found(name).config
    assert config is not None
    assert {field.names for field in config.fields} == MODELS[name][2]
    tied = [group for field in config.fields for group in field.groups]
    assert sorted([*tied, *config.fixed]) == sorted(g.name for g in found(name).groups)


def test_heads_stay_where_their_size_follows_from_their_number() -> None:
    config = found("bert").config
    assert config is not None
    assert set(config.fixed) == {
        "bert.pooler.dense",
        "bert.embeddings.word_embeddings",
        *(f"bert.encoder.layer.{i}.attention.self.query" for i in range(2)),
    }
    why = config.fixed["bert.encoder.layer.0.attention.self.query"]
    assert why.startswith("num_attention_heads does not set the width of its layers")
    for name in ("bert.pooler.dense", "bert.embeddings.word_embeddings"):
        heads = "bert.encoder.layer.0.attention.self.query"
        assert config.fixed[name] == f"hidden_size is also a width of {heads!r}"


def test_only_numbers_of_heads_that_the_class_accepts_are_offered() -> None:
    """Llama wants a hidden size (24) that is a multiple of the number of query heads; here two share a key head."""
    config = found("llama").config
    assert config is not None
    heads = next(f for f in config.fields if f.names == HEADS)
    assert (heads.each, heads.counts, heads.pinned) == ((2, 1), (1, 2, 3), ())
    config = found("qwen2").config  # which writes no head_dim down, and checks nothing
    assert config is not None
    heads = next(f for f in config.fields if f.names == HEADS)
    assert (heads.each, heads.pinned) == ((1, 1), (("head_dim", 4),))


def test_players_of_some_layers_only_are_fixed() -> None:
    """One number is the width of both layers, of which the second has no players here."""
    name = "bert.encoder.layer.0.intermediate.dense"
    players = sp.find_players(made("bert"), words(2), include=name)
    assert players.config is not None
    assert players.config.fields == ()
    assert players.config.fixed[name].startswith("intermediate_size counts more than these players: ")
    with pytest.raises(InputError, match=r"cannot say that any of these players is gone; .*sp\.save\n  bert.encoder"):
        sp.plan(sp.Scores(players, drawn(players)), sp.Budget(macs=0.9), limits=sp.options.Limits(hf_uniform=True))


@pytest.mark.parametrize(
    ("unit", "why"),
    [
        ("block", "config.json counts layers from the first one on, and a block that leaves makes a gap"),
        ("weight", "its players are no channels, which no number of config.json counts"),
    ],
)
def test_players_that_are_no_channels_are_fixed(unit: str, why: str) -> None:
    include = "bert.pooler.dense" if unit == "weight" else None
    config = sp.find_players(made("bert"), words(2), unit, include=include).config
    assert config is not None
    assert (config.fields, set(config.fixed.values())) == ((), {why})


def test_numbers_that_a_configuration_computes_are_no_field() -> None:
    """FalconConfig computes head_dim and has no setter for it; FalconConfig.ffn_hidden_size is an ordinary number."""
    t = pytest.importorskip("transformers")
    own = {"new_decoder_architecture": True, "num_kv_heads": 2, "ffn_hidden_size": 20, "bias": False}
    config = t.FalconConfig(vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=4, **own)
    players = sp.find_players(t.FalconForCausalLM(config).eval(), words(2))
    assert [len(g) for g in players.groups] == [16, 2, 20]
    assert players.config is not None
    assert [f.names for f in players.config.fields] == [("ffn_hidden_size",)]


def test_neurons_whose_gates_are_made_beside_them_are_counted() -> None:
    t = pytest.importorskip("transformers")
    config = t.Phi3Config(**{**SIZES, "intermediate_size": 21}, bos_token_id=0, eos_token_id=1, pad_token_id=2)
    model = t.Phi3ForCausalLM(config).eval()
    players = sp.find_players(model, words(2), unit="ffn")
    assert [(g.name, len(g)) for g in players.groups] == [(f"model.layers.{i}.mlp.gate_up_proj", 21) for i in range(2)]
    assert players.config is not None
    assert [f.names for f in players.config.fields] == [("intermediate_size",)]


def test_hidden_width_is_said_in_multiples_of_the_heads_and_not_where_norms_are_compensated(tmp_path: Path) -> None:
    model = made("llama")
    players = sp.find_players(model, words(2), unit="hidden")
    scores = sp.score(model, players, [words(8)], method="activation_mean")
    plan = sp.plan(scores, sp.Budget(params=0.7), limits=Limits(hf_uniform=True))
    small = sp.prune(model, plan, words(2), hf_uniform=True)
    assert small.config.hidden_size == plan.kept.sum() in (6, 12, 18)
    small.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(**words(2)).logits, small(**words(2)).logits)
    odd = sp.Plan.from_coalition(players, np.arange(24) > 0)
    with pytest.raises(InputError, match=r"hidden_size cannot say that 23 players stay in .*, only 6, 12, 18, 24"):
        sp.prune(model, odd, words(2), hf_uniform=True)
    held = sp.find_players(model, words(2), unit="hidden", norm="compensated").config
    assert held is not None
    assert "find_players with norm='slice'" in held.fixed["model.embed_tokens"]


def test_other_networks_have_no_configuration() -> None:
    model = build_model("digits")
    players = sp.find_players(model, torch.randn(2, 1, 8, 8))
    assert players.config is None
    with pytest.raises(InputError, match=r"hf_uniform=True is for models of transformers .* keep .* by sp\.save"):
        sp.plan(sp.Scores(players, drawn(players)), sp.Budget(macs=0.5), limits=sp.options.Limits(hf_uniform=True))
    kept = np.ones(players.n, dtype=bool)
    kept[0] = False
    with pytest.raises(InputError, match="hf_uniform=True is for models of transformers"):
        sp.prune(model, sp.Plan.from_coalition(players, kept), torch.randn(2, 1, 8, 8), hf_uniform=True)
    with pytest.raises(InputError, match="hf_uniform=True is for models of transformers"):
        sp.compress(
            model,
            [],
            sp.Budget(macs=0.5),
            example_inputs=torch.randn(2, 1, 8, 8),
            options=sp.options.Compression(limits=sp.options.Limits(hf_uniform=True)),
        )


# --- plan, prune, save_pretrained, from_pretrained ---


@each_model
@pytest.mark.parametrize("allocation", ["global", "uniform"])
def test_a_pruned_model_comes_back(name: str, allocation: str, tmp_path: Path) -> None:
    model, inputs, players = made(name), MODELS[name][1], found(name)
    plan = sp.plan(
        sp.Scores(players, drawn(players)),
        sp.Budget(params=0.85),
        allocation,
        limits=sp.options.Limits(hf_uniform=True),
    )
    before = model.config.to_dict()
    small = sp.prune(model, plan, inputs(2), hf_uniform=True)
    assert model.config.to_dict() == before
    small.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    assert sum(p.numel() for p in again.parameters()) == plan.cost["params"]
    with torch.no_grad():
        assert torch.equal(small(**inputs(3))[0], again(**inputs(3))[0])
        assert not torch.equal(small(**inputs(3))[0], model(**inputs(3))[0])


@each_model
def test_a_plan_takes_the_least_valuable_of_every_layer(name: str) -> None:
    players = found(name)
    scores = sp.Scores(players, drawn(players))
    plan = sp.plan(scores, sp.Budget(params=0.85), limits=sp.options.Limits(hf_uniform=True))
    stay = left(plan)
    assert players.config is not None
    for field in players.config.fields:
        assert len({stay[group] for group in field.groups}) == 1
    assert all(stay[group] == len(players.group(group)) for group in players.config.fixed)
    for group in players.groups:
        kept = plan.kept[group.indices]
        worst = scores[group.name].value[kept].min()
        assert (scores[group.name].value[~kept] < worst).all()


@each_model
def test_an_uneven_plan_is_refused_or_made_without(name: str, tmp_path: Path) -> None:
    model, inputs, plan = made(name), MODELS[name][1](2), uneven(name)
    config = plan.players.config
    assert config is not None
    field = next(f for f in config.fields if len(f.groups) > 1)
    n, (first, second) = len(plan.players.group(field.groups[0])), field.groups
    expected = f"{field} is one number for 2 groups, and {n - 1} players stay in '{first}', {n} in '{second}'"
    with pytest.raises(InputError) as refused:
        sp.prune(model, plan, inputs, hf_uniform=True)
    assert f"{expected}; make it by sp.plan(..., limits=sp.options.Limits(hf_uniform=True))" in str(refused.value)
    small = sp.prune(model, plan, inputs)
    assert small.config.to_dict() == model.config.to_dict()  # which cannot say it, so our own files do
    sp.save(small, plan, tmp_path / "small")
    again = sp.load(tmp_path / "small", build=lambda: made(name))
    with torch.no_grad():
        assert torch.equal(small(**inputs)[0], again(**inputs)[0])


def test_a_group_that_no_field_counts_is_named() -> None:
    players = found("bert")
    kept = np.ones(players.n, dtype=bool)
    kept[players.group("bert.pooler.dense").indices[:3]] = False
    with pytest.raises(
        InputError, match=r"group 'bert\.pooler\.dense' loses 3 players, and hidden_size is also a width of"
    ):
        sp.prune(made("bert"), sp.Plan.from_coalition(players, kept), words(2), hf_uniform=True)


def test_a_number_of_heads_that_the_class_does_not_accept_is_refused_before_pruning() -> None:
    players = found("vit")
    assert players.config is not None
    heads = next(f for f in players.config.fields if f.names == ("num_attention_heads",))
    kept = np.ones(players.n, dtype=bool)
    for name in heads.groups:
        kept[players.group(name).indices[:2]] = False
    some = [
        HfField(f.names, f.each, f.groups, (3, 6), f.model, f.pinned) if f is heads else f
        for f in players.config.fields
    ]
    strict = replace(players, config=HfFields(tuple(some), players.config.fixed))
    with pytest.raises(InputError, match=r"num_attention_heads cannot say that 4 players stay in .*, only 3, 6"):
        sp.prune(made("vit"), sp.Plan.from_coalition(strict, kept), pixels(2), hf_uniform=True)
    scores = drawn(strict)
    plan = sp.plan(sp.Scores(strict, dict(scores)), sp.Budget(params=0.8), limits=sp.options.Limits(hf_uniform=True))
    assert {left(plan)[name] for name in heads.groups} <= {3, 6}


def test_a_plan_that_fits_is_written_down_without_being_asked() -> None:
    model, players = made("llama"), found("llama")
    plan = sp.plan(sp.Scores(players, drawn(players)), sp.Budget(params=0.8), limits=sp.options.Limits(hf_uniform=True))
    stay = left(plan)
    small = sp.prune(model, plan, words(2))
    assert small.config.intermediate_size == stay["model.layers.0.mlp.gate_proj"]
    assert small.config.num_key_value_heads == stay["model.layers.0.self_attn.q_proj"]
    assert small.config.num_attention_heads == 2 * small.config.num_key_value_heads
    assert small.config.head_dim == 4
    assert {id(m.config) for m in small.modules() if hasattr(m, "config")} == {id(small.config)}


def test_copies_of_the_configuration_are_told_too() -> None:
    """The encoder of T5 keeps a configuration of its own."""
    model, players = made("t5"), found("t5")
    model.encoder.config = copy.deepcopy(model.config)
    plan = sp.plan(
        sp.Scores(players, drawn(players)), sp.Budget(players=0.7), "uniform", limits=sp.options.Limits(hf_uniform=True)
    )
    small = sp.prune(model, plan, words(2))
    ff = left(plan)["encoder.block.0.layer.1.DenseReluDense.wi"]
    assert small.config.d_ff == small.encoder.config.d_ff == ff < 20


class Averaged(nn.Module):
    """A sentence encoder: the model of transformers stands inside."""

    def __init__(self) -> None:
        super().__init__()
        transformers = pytest.importorskip("transformers")
        torch.manual_seed(0)
        self.encoder = transformers.BertModel(transformers.BertConfig(**SIZES), add_pooling_layer=False)
        self.hidden, self.end = nn.Linear(24, 8), nn.Linear(8, 2)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.end(torch.relu(self.hidden(self.encoder(input_ids)[0].mean(1))))


def test_a_model_inside_another_one() -> None:
    model = Averaged().eval()
    players = sp.find_players(model, words(2))
    assert players.config is not None
    assert [f.model for f in players.config.fields] == ["encoder"]
    assert players.config.fixed["hidden"] == "they stand in no model of transformers"
    plan = sp.plan(sp.Scores(players, drawn(players)), sp.Budget(params=0.8), limits=sp.options.Limits(hf_uniform=True))
    small = sp.prune(model, plan, words(2), hf_uniform=True)
    assert small.encoder.config.intermediate_size == left(plan)["encoder.encoder.layer.0.intermediate.dense"] < 20
    assert model.encoder.config.intermediate_size == 20


def test_finding_leaves_the_model_and_random_states(untouched: Any) -> None:
    model = made("llama")
    before = model.config.to_dict()
    with untouched(model):
        sp.find_players(model, words(2))
    assert model.config.to_dict() == before


@pytest.mark.filterwarnings("ignore:the whole model is run for every coalition")
def test_compress_makes_a_model_that_comes_back(tmp_path: Path) -> None:
    model = made("bert")
    data = [(words(16), torch.zeros(16, dtype=torch.int64))]
    made_small = sp.compress(
        model,
        data,
        sp.Budget(macs=0.8),
        example_inputs=words(2),
        recover=(),
        options=sp.options.Compression(limits=sp.options.Limits(hf_uniform=True), max_evaluations=64),
    )
    made_small.model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(**words(3))[0], made_small.model.eval()(**words(3))[0])


def test_the_command_line_plans_from_saved_values(tmp_path: Path) -> None:
    players = found("bert")
    Scores(players, drawn(players), "fidelity").save(tmp_path / "values.json")
    arguments = ["plan", str(tmp_path / "values.json"), "--budget", "params=0.85"]
    for folder, extra in (("even", ["--hf-uniform"]), ("free", [])):
        done = CliRunner().invoke(app, [*arguments, *extra, "--out", str(tmp_path / folder)], prog_name="shaprune")
        assert done.exit_code == 0, done.stderr
    even = sp.Plan.load(tmp_path / "even" / "plan.json")
    assert even.players.config == players.config
    assert len({left(even)[f"bert.encoder.layer.{i}.intermediate.dense"] for i in range(2)}) == 1
    assert left(even)["bert.pooler.dense"] == 24
    assert left(sp.Plan.load(tmp_path / "free" / "plan.json")) != left(even)


# --- tied groups, by hand ---


def two_layers(counts: tuple[int, ...] | None) -> Players:
    """Linear a: 3 -> 4, b: 4 -> 4, c: 4 -> 2; the outputs of a and of b are counted by one field."""
    ours = tuple((i,) for i in range(4))
    layers = {
        name: Layer("linear", n_in, n_out, 1, 1, False, 1.0)
        for name, n_in, n_out in (("a", 3, 4), ("b", 4, 4), ("c", 4, 2))
    }
    groups = number_groups(
        [
            ("a", [Member("a", "out", ours), Member("b", "in", ours)]),
            ("b", [Member("b", "out", ours), Member("c", "in", ours)]),
        ]
    )
    config = HfFields((HfField(("width",), (1,), ("a", "b"), counts),), {})
    return Players(groups, layers, (), 36, 36.0, config=config)


VALUE = np.array([4.0, 1.0, 3.0, 2.0, 5.0, 8.0, 7.0, 6.0])


@pytest.mark.parametrize(
    ("counts", "options", "steps"),
    [
        (None, {}, [[1, 4], [3, 7], [2, 6]]),
        ((2, 4), {}, [[1, 3, 4, 7]]),
        ((1, 3, 4), {}, [[1, 4], [3, 2, 7, 6]]),
        (None, {"round_to": 2}, [[1, 3, 4, 7]]),
        (None, {"max_removed": {"b": 0.25}}, [[1, 4]]),
        (None, {"keep": "b"}, []),
        ((4,), {}, []),
    ],
)
def test_tied_groups_go_down_together(counts: Any, options: dict[str, Any], steps: list[list[int]]) -> None:
    players = two_layers(counts)
    found = removal_sequences(players, VALUE, Limits(**options, hf_uniform=True))
    assert [step.tolist() for step in found[0]] == steps
    assert found[1] == []
    assert len(removal_sequences(players, VALUE, Limits(**options))[0]) >= len(steps)  # alone, they are not tied


def test_the_configuration_survives_json() -> None:
    players = two_layers((2, 4))
    assert Players.from_json(players.to_json()).config == players.config
    older = players.to_json()
    del older["config"]
    assert Players.from_json(older).config is None
    older["config"] = {"fields": [{}], "fixed": {}}
    with pytest.raises(InputError, match="not players written by shaprune"):
        Players.from_json(older)
