"""Looking inside: maps are what readers read, Grad-CAM is its formula, and masked networks look as pruned ones do."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from testkit.reported import Residual, made_up
from torch import Tensor, nn

import shaprune as sp
from shaprune.pipeline.feature_maps import DENSE, WITHOUT_LEAST, WITHOUT_MOST
from shaprune.report.figures.feature_maps import feature_maps_section


class Tiny(nn.Module):
    """Two convolutions and an average: its Grad-CAM can be written down."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 5, 3, padding=1)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.last(torch.relu_(self.first(x))))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def tiny() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Tiny()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(5, 3, 6, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def scores(tiny: nn.Module, images: Tensor) -> sp.Scores:
    return made_up(sp.find_players(tiny, images[:2]))


def test_maps_are_what_the_readers_read(tiny: nn.Module, scores: sp.Scores, images: Tensor) -> None:
    seen = sp.feature_maps(tiny, scores.players, scores, images, channels=2)
    assert [c.group for c in seen.channels] == ["first", "last"]
    first = seen.channels[0]
    order = scores["first"].ranking()
    shown = [order[3], order[2], order[0], order[1]]
    assert first.names == tuple(f"first[{i}]" for i in shown)
    assert first.n_best == 2
    assert first.value.tolist() == scores["first"].value[shown].tolist()
    with torch.no_grad():
        read = torch.relu(tiny.get_submodule("first")(images))
    np.testing.assert_allclose(first.maps, read[:, shown].numpy(), rtol=1e-6)
    with torch.no_grad():  # behind the last convolution only an average reads: its output is shown
        made = tiny.get_submodule("last")(torch.relu(tiny.get_submodule("first")(images)))
    shown = [scores["last"].ranking()[i] for i in (4, 3, 0, 1)]
    np.testing.assert_allclose(seen.channels[1].maps, made[:, shown].numpy(), rtol=1e-5)


def test_grad_cam_is_its_formula(tiny: nn.Module, scores: sp.Scores, images: Tensor) -> None:
    seen = sp.feature_maps(tiny, scores.players, scores, images)
    assert seen.layer == "last"
    with torch.no_grad():
        made = tiny.get_submodule("last")(torch.relu(tiny.get_submodule("first")(images)))
        outputs = tiny(images)
    answer = outputs.argmax(1)
    # d logit / d made = weight of the head / places, where the ReLU lets it through; weights are its mean over places
    weight = tiny.get_submodule("head").weight[answer].detach()  # type: ignore[index]
    gradient = weight[:, :, None, None] / 36 * (made > 0)
    expected = (gradient.mean((2, 3), keepdim=True) * made).sum(1).clamp_min(0)
    dense = seen.attention[DENSE]
    np.testing.assert_allclose(dense.maps, expected.numpy(), rtol=1e-4, atol=1e-7)
    assert (dense.maps.max() > 0) and (dense.maps.min() >= 0)  # noqa: PT018
    assert dense.answer.tolist() == answer.tolist()
    np.testing.assert_allclose(dense.confidence, outputs.softmax(1).max(1).values.numpy(), rtol=1e-5)


@pytest.mark.parametrize("which", [WITHOUT_LEAST, WITHOUT_MOST])
def test_a_network_under_masks_looks_as_the_pruned_one(
    tiny: nn.Module, scores: sp.Scores, images: Tensor, which: str
) -> None:
    kept = np.ones(scores.players.n, dtype=bool)
    for group in scores.players.groups:
        order = group.indices[scores[group.name].ranking()]
        n = round(0.4 * len(group))
        kept[order[:n] if which == WITHOUT_LEAST else order[-n:]] = False
    seen = sp.feature_maps(tiny, scores.players, scores, images, share=0.4)
    small = sp.prune(tiny, sp.Plan.from_coalition(scores.players, kept), images[:2]).eval()
    answer = seen.attention[DENSE].answer
    caught: list[Tensor] = []
    small.get_submodule("last").register_forward_hook(lambda _, __, out: caught.append(out) or out.clone())
    outputs = small(images)
    (gradient,) = torch.autograd.grad(outputs.gather(1, torch.from_numpy(answer)[:, None]).sum(), caught[0])
    cam = (gradient.mean((2, 3), keepdim=True) * caught[0]).sum(1).clamp_min(0).detach()
    np.testing.assert_allclose(seen.attention[which].maps, cam.numpy(), rtol=1e-4, atol=1e-7)
    assert seen.attention[which].answer.tolist() == outputs.argmax(1).tolist()


def test_a_channel_serves_what_the_answer_loses_without_it(tiny: nn.Module, scores: sp.Scores, images: Tensor) -> None:
    found = sp.feature_maps(tiny, scores.players, scores, images, groups=["first"], channels=1).channels[0]
    assert found.served_by == "leaving alone"
    game = sp.NetworkGame(
        tiny.eval(), scores.players, [(images, tiny(images).argmax(1))], "cross_entropy", "first"
    )  # minus the loss on the dense answer = its log-probability
    player = int(scores["first"].ranking()[-1])
    rows = np.ones((5, 4), dtype=bool)
    rows[:, player] = False
    gained = game(np.ones((5, 4), dtype=bool), np.arange(5)) - game(rows, np.arange(5))
    np.testing.assert_allclose(found.serves[:, 0], gained, rtol=1e-4, atol=1e-6)


def test_values_of_every_example_say_whom_a_channel_serves(tiny: nn.Module, scores: sp.Scores, images: Tensor) -> None:
    by_example = np.arange(20.0).reshape(5, 4)
    kept = {**scores.by_group, "first": replace(scores["first"], by_example=by_example)}
    found = sp.feature_maps(tiny, scores.players, kept, images, channels=1, groups=["first"]).channels[0]
    assert found.served_by == "values"
    order = scores["first"].ranking()
    assert found.serves.tolist() == by_example[:, [order[-1], order[0]]].tolist()


def test_the_model_comes_back_untouched(images: Tensor, scores: sp.Scores, tiny: nn.Module) -> None:
    tiny.train()
    for parameter in tiny.parameters():
        parameter.requires_grad_(False)
    before = {name: t.clone() for name, t in tiny.state_dict().items()}
    sp.feature_maps(tiny, scores.players, scores, images)
    with pytest.raises(sp.InputError, match="no layer 'lsat'; did you mean 'last'"):
        sp.feature_maps(tiny, scores.players, scores, images, layer="lsat")
    assert tiny.training
    assert all(torch.equal(t, before[name]) for name, t in tiny.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in tiny.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in tiny.modules())
    assert torch.is_grad_enabled()
    for parameter in tiny.parameters():
        parameter.requires_grad_(True)


def test_what_cannot_be_looked_at_is_refused(tiny: nn.Module, images: Tensor, scores: sp.Scores) -> None:
    players = scores.players
    for wrong, told in (
        ({"images": images[0]}, "give a tensor of 1 to 12 images"),
        ({"images": images.repeat(3, 1, 1, 1)}, "give a tensor of 1 to 12 images"),
        ({"share": 1.0}, "between 0 and 1"),
        ({"channels": 0}, "at least 1"),
        ({"groups": ["frist"]}, "did you mean 'first'"),
        ({"layer": "head"}, "gives out no maps"),
    ):
        with pytest.raises(sp.InputError, match=told):
            sp.feature_maps(tiny, players, scores, **{"images": images, **wrong})  # type: ignore[arg-type]
    flat = nn.Sequential(nn.Flatten(), nn.Linear(108, 6), nn.ReLU(), nn.Linear(6, 3))
    plain = made_up(sp.find_players(flat, images[:2]))
    with pytest.raises(sp.InputError, match="no group has feature maps"):
        sp.feature_maps(flat, plain.players, plain, images)
    with pytest.raises(sp.InputError, match="score again"):
        sp.feature_maps(tiny, players, plain, images)


def test_a_section_shows_every_image_with_words(images: Tensor) -> None:
    model = Residual().eval()
    grey = images[:3, :1]
    scores = made_up(sp.find_players(model, grey[:2]))
    seen = sp.feature_maps(model, scores.players, scores, grey, channels=2, classes=["<cat>", "dog", "owl"])
    html = "".join(feature_maps_section(seen))
    pictures = html.count('src="data:image/png;base64,')
    shown = sum(len(c.names) for c in seen.channels)
    assert pictures == 3 * 4 + 3 * shown + 3 * shown
    assert html.count('alt="') == pictures
    assert 'alt=""' not in html
    assert "<cat>" not in html
    for name in (DENSE, WITHOUT_LEAST, WITHOUT_MOST):
        assert html.count(f"Grad-CAM, {name}: ") == 3
    assert "Feature map of stem[" in html
