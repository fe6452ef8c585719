"""The reference networks."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import fx

from shaprune.bench.models import MODELS, build_model
from shaprune.errors import InputError


def n_parameters(name: str) -> int:
    return sum(p.numel() for p in build_model(name).parameters())


@pytest.mark.parametrize("name", MODELS)
def test_a_network_maps_its_inputs_to_ten_outputs_and_can_be_traced(name: str) -> None:
    entry = MODELS[name]
    model, x = build_model(name).eval(), torch.randn(2, *entry.input_shape)
    with torch.no_grad():
        assert model(x).shape == (2, 10)
        assert torch.equal(fx.symbolic_trace(model)(x), model(x))
    assert entry.doc.endswith(".")
    assert build_model(name) is not build_model(name)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("lenet1", 3_246), ("lenet5", 431_080), ("lenet5-reduced", 40_165), ("resnet56", 853_018), ("mlp", 8_970)],
)
def test_parameter_counts_are_those_of_the_literature(name: str, parameters: int) -> None:
    assert n_parameters(name) == parameters


def test_lenet5_has_570_players_in_its_hidden_layers() -> None:
    model = build_model("lenet5")
    assert (model.conv1.out_channels, model.conv2.out_channels, model.fc1.out_features) == (20, 50, 500)
    assert model.fc1.in_features == 800


def test_resnet56_takes_the_shared_weights(shared_data: Path) -> None:
    home = shared_data / "resnet56-cifar10"
    weights, model = load_file(home / "resnet56.safetensors"), build_model("resnet56")
    assert set(weights) == set(model.state_dict())
    model.load_state_dict(weights)
    assert n_parameters("resnet56") == json.loads((home / "resnet56.json").read_text())["parameters"]


def test_an_unknown_network_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(InputError, match="unknown model 'lenet-5'; did you mean 'lenet5'"):
        build_model("lenet-5")
