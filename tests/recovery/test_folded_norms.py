"""Frozen batch-norms trained as part of their convolutions: the same function, and the way back to the layers."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shaprune.recovery.folded_norms import TrainedCopy

pytestmark = pytest.mark.usefixtures("one_thread")


def with_statistics(model: nn.Module) -> nn.Module:
    """Batch-norms as after a training, some channels scaled to nothing or next to it."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            size = module.num_features
            module.running_mean.copy_(torch.randn(size, generator=generator))  # type: ignore[union-attr]
            module.running_var.copy_(torch.rand(size, generator=generator) + 0.5)  # type: ignore[union-attr]
            if module.affine:
                with torch.no_grad():
                    module.weight.copy_(torch.randn(size, generator=generator))
                    module.weight[0], module.weight[1] = 0.0, 1e-7
                    module.bias.copy_(torch.randn(size, generator=generator))
    return model.eval()


class Shared(nn.Module):
    """One convolution in two places, and a batch-norm whose scale something else reads."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.once, self.read = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.twice(self.twice(x)))
        out: Tensor = self.read(self.once(x)) * self.read.weight.sum()
        return out


def layers(*kinds: Any) -> nn.Module:
    return with_statistics(nn.Sequential(*kinds))


NETWORKS = {
    "with and without a bias": (
        lambda: layers(
            nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5)
        ),
        {"0": "1", "3": "4"},
    ),
    "depthwise": (lambda: layers(nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.BatchNorm2d(4)), {"0": "1"}),
    "no scale": (lambda: layers(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, affine=False)), {}),
    "shared": (lambda: with_statistics(Shared()), {}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_the_copy_learns_is_the_networks_function_afterwards(name: str) -> None:
    make, folded = NETWORKS[name]
    torch.manual_seed(0)
    model, x = make(), torch.randn(3, 4, 8, 8)
    copy = TrainedCopy(model, x)
    assert copy.folded == folded
    with torch.no_grad():
        assert torch.allclose(copy.model(x), model(x), atol=1e-4)
        for parameter in copy.model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        taught = copy.model(x)
        assert not torch.allclose(taught, model(x), atol=1e-2)
        copy.write_back()
        assert torch.allclose(model(x), taught, atol=1e-4)
    assert all(type(m) is not nn.Identity for m in model.modules())


def test_frozen_weights_and_layers_with_hooks_stay_apart() -> None:
    model, x = (
        layers(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)),
        torch.randn(2, 4, 8, 8),
    )
    model[0].weight.requires_grad_(False)  # type: ignore[union-attr, index, operator]
    model[2].register_forward_hook(lambda *_: None)  # type: ignore[index, operator]
    copy = TrainedCopy(model, x)
    assert not copy.folded
    assert not copy.model[0].weight.requires_grad  # type: ignore[union-attr, index]
