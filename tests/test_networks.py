"""The registered networks are what the promise tests rely on."""

import pytest
import torch
from networks import BATCH, N_OUTPUTS, NETWORKS
from torch import fx, nn


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_seeded_deterministic_traceable_and_ends_in_five_outputs(name: str) -> None:
    make, inputs = NETWORKS[name]
    state = torch.get_rng_state()
    model, twin, x = make(), make(), inputs()
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        outputs = model(x)
        assert outputs.shape == (BATCH, N_OUTPUTS)
        assert torch.equal(outputs, twin(inputs()))
        assert torch.equal(outputs, fx.symbolic_trace(model)(x))
    assert list(model.children())[-1].out_features == N_OUTPUTS
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3  # the input matters


@pytest.mark.parametrize("name", NETWORKS)
def test_batch_norms_move_zero(name: str) -> None:
    for module in NETWORKS[name][0]().modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            at_zero = module.bias - module.weight * module.running_mean / (module.running_var + module.eps).sqrt()
            assert at_zero.abs().min() > 1e-4
            assert module.running_var.std() > 0.05
