"""The reference networks."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import fx

from shaprune.builtin.models import MODELS, build_model
from shaprune.errors import InputError
from shaprune.network.borrow import copied
from shaprune.network.discovery.find_players import find_players
from shaprune.network.removal.mask_sites import mask_sites
from shaprune.network.removal.masks import masked
from shaprune.network.removal.surgery import remove_players


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
    [
        ("lenet1", 3_246),
        ("lenet5", 431_080),
        ("lenet5-reduced", 40_165),
        ("resnet56", 853_018),
        ("mlp", 8_970),
        ("lenet300", 266_610),
        ("mlp-mnist", 5_707_690),  # as printed in the notebook of Ancona et al. 2020
        ("vgg-small", 173_034),
    ],
)
def test_parameter_counts_are_those_of_the_literature(name: str, parameters: int) -> None:
    assert n_parameters(name) == parameters


def test_lenet5_has_570_players_in_its_hidden_layers() -> None:
    model = build_model("lenet5")
    assert (model.conv1.out_channels, model.conv2.out_channels, model.fc1.out_features) == (20, 50, 500)
    assert model.fc1.in_features == 800


def test_the_untrained_perceptron_is_that_of_the_paper() -> None:
    model = build_model("mlp-mnist")
    assert [tuple(w.shape) for name, w in model.named_parameters() if "weight" in name] == [
        (2024, 784),
        (2024, 2024),
        (10, 2024),
    ]
    with torch.no_grad():
        for leaky in (model.relu1, model.relu2):
            assert float(leaky(torch.tensor(-1.0))) == pytest.approx(-0.01)


def test_vgg_small_has_400_players_behind_batch_norm() -> None:
    players = find_players(build_model("vgg-small").eval(), torch.randn(2, 3, 32, 32))
    assert {g.name: len(g) for g in players.groups} == {
        "conv1": 32,
        "conv2": 48,
        "conv3": 64,
        "conv4": 64,
        "conv5": 96,
        "fc1": 96,
    }
    assert all(any(m.role == "both" for m in g.members) for g in players.groups if g.name != "fc1")


def test_resnet56_takes_the_shared_weights(shared_data: Path) -> None:
    home = shared_data / "resnet56-cifar10"
    weights, model = load_file(home / "resnet56.safetensors"), build_model("resnet56")
    assert set(weights) == set(model.state_dict())
    model.load_state_dict(weights)
    assert n_parameters("resnet56") == json.loads((home / "resnet56.json").read_text())["parameters"]


@pytest.mark.usefixtures("one_thread")
def test_resnet56_with_its_trained_weights_is_masked_as_it_is_cut_residual_streams_and_all(shared_data: Path) -> None:
    model = build_model("resnet56").eval()
    model.load_state_dict(load_file(shared_data / "resnet56-cifar10" / "resnet56.safetensors"))
    inputs = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    players = find_players(model, inputs)
    streams = [g for g in players.groups if sum(m.role == "out" for m in g.members) > 1]
    assert streams  # channels that run through the additions
    rng = np.random.default_rng(0)
    kept = rng.random((8, players.n)) < np.linspace(0.3, 0.95, 8)[:, None]
    for group in players.groups:
        kept[:, group.indices[0]] = True
    with torch.no_grad(), masked(model, mask_sites(players, players.groups, inputs.device), torch.tensor(kept).float()):
        by_mask = model(inputs.expand(len(kept), -1, -1, -1))
    for row, ours in zip(kept, by_mask, strict=True):
        with torch.no_grad():
            theirs = remove_players(copied(model), players, row)(inputs)[0]
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_an_unknown_network_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(InputError, match="unknown model 'lenet-5'; did you mean 'lenet5'"):
        build_model("lenet-5")
