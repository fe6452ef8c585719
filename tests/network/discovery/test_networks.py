"""The registered networks are what the promise tests rely on."""

import pytest
import torch
from testkit.networks import BATCH, N_OUTPUTS, NETWORKS
from torch import fx, nn

import shaprune as sp


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


class OneOfTwo(nn.Module):
    """Its code takes fewer channels from ``a`` or from ``b``, not from both."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(5, 6) for _ in range(3))
        self.fc = nn.ModuleList(nn.Linear(6, 2) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b, c = (torch.relu(layer(x)) for layer in (self.a, self.b, self.c))
        if a.shape[1] < 6 and b.shape[1] < 6:
            raise RuntimeError("fewer channels on both sides")
        return self.fc[0](a) + self.fc[1](b) + self.fc[2](c)


def test_groups_that_only_disagree_together_do_not_take_others_with_them() -> None:
    players = sp.find_players(OneOfTwo().eval(), torch.randn(2, 5))
    assert [group.name for group in players.groups] in (["a", "c"], ["b", "c"])
    reasons = {s.name: s.reason for s in players.skipped}
    assert "together with other groups" in reasons["b" if players.groups[0].name == "a" else "a"]
