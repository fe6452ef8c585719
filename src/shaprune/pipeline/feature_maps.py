"""Feature maps and Grad-CAM of a vision model: what the most and the least valuable channels see.

Feature maps stand where masks stand, at what the consumers of a group read, so a map is what leaves with its channel.
Grad-CAM (Selvaraju et al. 2017): the channels of one layer, each weighted by the mean gradient of the answer's logit,
added up, and only what is above zero. The networks without some of their channels run under masks, which is what
removal does; all maps are those of the dense network's answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shaprune.errors import InputError, nearest
from shaprune.network.batches import main_output, run
from shaprune.network.borrow import borrowed, device_of
from shaprune.network.hooks import hooked
from shaprune.network.layers.layer_inputs import Arguments, input_of, with_input
from shaprune.network.removal.mask_sites import mask_sites
from shaprune.network.removal.masks import masked
from shaprune.network.removal.surgery import check_fits
from shaprune.planning.plan import player_values
from shaprune.players.players import Group, Players
from shaprune.values.result import Values

Floats = NDArray[np.float64]
MAX_IMAGES = 12
DENSE, WITHOUT_LEAST, WITHOUT_MOST = "dense", "without the least valuable", "without the most valuable"
_DEFAULT_GROUPS = 3  # shown by default


@dataclass(frozen=True, eq=False)
class ChannelMaps:
    """What some channels of a group see.

    Attributes:
        group: name of the group.
        names: of the channels: the most valuable first, then the least valuable first.
        n_best: how many of them are among the most valuable.
        value: (channels,) their values.
        maps: (images, channels, h, w) what their readers see; the mean over what a player owns.
        serves: (images, channels) what the channel contributes on each image.
        served_by: where ``serves`` comes from: ``"values"`` of every example, or ``"leaving alone"``: what the log-
            probability of the dense network's answer loses without the channel.
    """

    group: str
    names: tuple[str, ...]
    n_best: int
    value: Floats
    maps: Floats
    serves: Floats
    served_by: str


@dataclass(frozen=True, eq=False)
class AttentionMap:
    """Where one network looks.

    Attributes:
        maps: (images, h, w) Grad-CAM of the dense network's answer, 0 and above.
        answer: (images,) the class that this network answers.
        confidence: (images,) the probability that it gives to the dense network's answer.
    """

    maps: Floats
    answer: NDArray[np.int64]
    confidence: Floats


@dataclass(frozen=True, eq=False)
class FeatureMaps:
    """What `feature_maps` found.

    Attributes:
        images: (images, C, H, W) as they were given.
        attention: by network: dense, without the least valuable, without the most valuable.
        layer: whose channels Grad-CAM adds up.
        share: of every group, how much left the networks that are not dense.
        channels: one entry per group.
        classes: names of the classes; empty = their numbers.
    """

    images: Floats
    attention: dict[str, AttentionMap]
    layer: str
    share: float
    channels: tuple[ChannelMaps, ...]
    classes: tuple[str, ...] = ()


def feature_maps(
    model: nn.Module,
    players: Players,
    scores: Mapping[str, Values],
    images: Tensor,
    *,
    groups: Sequence[str] | None = None,
    channels: int = 4,
    share: float = 0.3,
    layer: str | None = None,
    classes: Sequence[str] = (),
) -> FeatureMaps:
    """See what the most and the least valuable channels see, and where the network looks without them.

    Args:
        model: the dense network, a classifier of images; it comes back untouched.
        players: its players, channels.
        scores: their values.
        images: (1 to 12, C, H, W), as the network takes them. Where values of every example were kept, and there are as
            many as images, the images are taken for those examples.
        groups: whose channels to show; None = the first, the middle and the last that have maps.
        channels: how many of the most and of the least valuable.
        share: of every group, how much leaves for the second and third network; at least one channel stays.
        layer: whose channels Grad-CAM adds up; None = the last convolution whose output has more than one place.
        classes: names of the classes.

    Returns:
        `FeatureMaps`: maps of these channels, and Grad-CAM of the dense and the two smaller networks.

    Raises:
        InputError: no images, a network that is no classifier of them, players that are no channels, an unknown group
            or layer, or one without maps.
    """
    _check(images, channels, share)
    check_fits(model, players)
    player_values(players, scores)  # refuses values of other players
    on = images.detach().to(device_of(model))
    with borrowed(model):
        with torch.no_grad():
            outputs = main_output(run(model, on))
            if outputs.ndim != 2 or len(outputs) != len(on):
                raise InputError(f"the network answers {tuple(outputs.shape)}; looking needs (images, classes)")
            found = _maps_by_group(model, players, on, groups)
            shown = tuple(
                _channels(model, players, scores[name], players.group(name), maps, on, outputs, channels)
                for name, maps in found.items()
            )
        target = layer or _last_convolution(model, on)
        answer = outputs.argmax(1)
        attention = {DENSE: _attention(model, on, answer, target)}
        sites = mask_sites(players, players.groups, on.device)
        for name, gone in _least_and_most_valuable(players, scores, share).items():
            mask = torch.from_numpy(~gone).to(on.device, torch.get_default_dtype())[None]
            with masked(model, sites, mask):
                attention[name] = _attention(model, on, answer, target)
    return FeatureMaps(_numbers(images), attention, target, share, shown, tuple(classes))


def _check(images: Tensor, channels: int, share: float) -> None:
    if not isinstance(images, Tensor) or images.ndim != 4 or not 1 <= len(images) <= MAX_IMAGES:
        shape = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise InputError(f"images is {shape}; give a tensor of 1 to {MAX_IMAGES} images, (N, C, H, W)")
    if channels < 1:
        raise InputError(f"channels is {channels}; show at least 1")
    if not 0 < share < 1:
        raise InputError(f"share is {share}; how much of every group leaves must lie strictly between 0 and 1")


@contextmanager
def _layer_hook(model: nn.Module, name: str, keep: Any, *, before: bool) -> Iterator[None]:
    """Give what a layer reads (``before``) or gives out to ``keep``, which may answer with a replacement."""
    layer = model.get_submodule(name)

    def read(module: nn.Module, args: Any, kwargs: Any) -> Arguments | None:
        x = keep(input_of(args, kwargs))
        return None if x is None else with_input(args, kwargs, x)

    handle = (
        layer.register_forward_pre_hook(read, with_kwargs=True)
        if before
        else layer.register_forward_hook(lambda module, args, output: keep(output))
    )
    with hooked([handle]):
        yield


def _maps_by_group(
    model: nn.Module, players: Players, images: Tensor, groups: Sequence[str] | None
) -> dict[str, Tensor]:
    """By group, (images, players, h, w)."""
    if groups is not None:
        found = {name: _maps(model, players.group(name), images) for name in groups}
        for name, maps in found.items():
            if maps is None:
                raise InputError(f"the channels of group {name!r} are no maps (nothing about them has a place)")
        return {name: maps for name, maps in found.items() if maps is not None}
    with_maps = [(group.name, maps) for group in players.groups if (maps := _maps(model, group, images)) is not None]
    if not with_maps:
        raise InputError("no group has feature maps; looking is for networks with convolutions over images")
    places = np.unique(np.linspace(0, len(with_maps) - 1, _DEFAULT_GROUPS).round().astype(int))
    return dict(with_maps[place] for place in places)


def _maps(model: nn.Module, group: Group, images: Tensor) -> Tensor | None:
    """(images, players, h, w) at the first place where the group's channels have places; None where there is none."""
    places = [(m, True) for m in group.consumers]
    places += [(m, False) for m in reversed(group.members) if m.role in ("both", "out")]
    for member, before in places:
        caught: list[Tensor] = []
        with _layer_hook(model, member.module, lambda x, caught=caught: _keep(x, caught), before=before):
            run(model, images)
        if caught and caught[0].ndim == 4 and len(caught[0]) == len(images):
            x = caught[0]
            return torch.stack([x[:, list(own)].mean(1) for own in member.channels], dim=1)
    return None


def _keep(x: Any, caught: list[Tensor]) -> None:
    if isinstance(x, Tensor):
        caught.append(x.clone())  # what follows may write in place


def _channels(
    model: nn.Module,
    players: Players,
    values: Values,
    group: Group,
    maps: Tensor,
    images: Tensor,
    outputs: Tensor,
    n: int,
) -> ChannelMaps:
    order = values.ranking()
    n_best = min(n, -(-len(order) // 2))
    shown = np.concatenate([order[::-1][:n_best], order[: min(n, len(order) - n_best)]])
    if values.by_example is not None and len(values.by_example) == len(images):
        serves, by = values.by_example[:, shown], "values"
    else:
        serves, by = _loss_without_each(model, players, group, shown, images, outputs), "leaving alone"
    names = tuple(group.names[i] for i in shown)
    return ChannelMaps(group.name, names, n_best, values.value[shown], _numbers(maps[:, shown]), serves, by)


def _loss_without_each(
    model: nn.Module, players: Players, group: Group, shown: NDArray[np.int64], images: Tensor, outputs: Tensor
) -> Floats:
    """(images, shown) what the log-probability of the dense answer loses without each channel."""
    sites, answer = mask_sites(players, [group], images.device), outputs.argmax(1, keepdim=True)
    dense = outputs.log_softmax(1).gather(1, answer)
    lost = []
    for player in shown.tolist():
        mask = images.new_ones(1, len(group))
        mask[0, player] = 0
        with masked(model, sites, mask):
            lost.append(dense - main_output(run(model, images)).log_softmax(1).gather(1, answer))
    return _numbers(torch.cat(lost, dim=1))


def _least_and_most_valuable(
    players: Players, scores: Mapping[str, Values], share: float
) -> dict[str, NDArray[np.bool_]]:
    """Who leaves: the same number of the least, and of the most valuable of every group."""
    least, most = np.zeros(players.n, dtype=bool), np.zeros(players.n, dtype=bool)
    for group in players.groups:
        order = group.indices[scores[group.name].ranking()]
        n = min(round(share * len(group)), len(group) - 1)
        least[order[:n]] = True
        most[order[len(order) - n :]] = True
    return {WITHOUT_LEAST: least, WITHOUT_MOST: most}


def _last_convolution(model: nn.Module, images: Tensor) -> str:
    """The last convolution, in order of execution, whose output has more than one place."""
    ran: list[str] = []
    hooks = (
        module.register_forward_hook(
            lambda _, __, output, name=name: ran.append(name) if output.shape[2:].numel() > 1 else None
        )
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    )
    with hooked(hooks), torch.no_grad():
        run(model, images)
    if not ran:
        raise InputError("no convolution gives out maps; name the layer for Grad-CAM: layer=...")
    return ran[-1]


def _attention(model: nn.Module, images: Tensor, answer: Tensor, layer: str) -> AttentionMap:
    names = [name for name, _ in model.named_modules() if name]
    if layer not in names:
        raise InputError(f"the network has no layer {layer!r}{nearest(layer, names)}")
    leaves: list[Tensor] = []

    def keep(output: Tensor) -> Tensor:
        if not isinstance(output, Tensor) or output.ndim != 4:
            raise InputError(f"layer {layer!r} gives out no maps (N, C, H, W); name a convolution")
        leaves.append(output.detach().requires_grad_())
        return leaves[-1].clone()  # what follows may write in place

    with torch.enable_grad(), _layer_hook(model, layer, keep, before=False):
        outputs = main_output(run(model, images))
        if len(leaves) != 1:
            raise InputError(f"layer {layer!r} ran {len(leaves)} times; name one that runs once")
        chosen = outputs.gather(1, answer[:, None]).sum()
        (gradient,) = torch.autograd.grad(chosen, leaves)
    with torch.no_grad():
        weights = gradient.mean((2, 3), keepdim=True)
        maps = (weights * leaves[0]).sum(1).clamp_min(0)
        confidence = outputs.softmax(1).gather(1, answer[:, None])[:, 0]
        return AttentionMap(_numbers(maps), outputs.argmax(1).cpu().numpy(), _numbers(confidence))


def _numbers(tensor: Tensor) -> Floats:
    return tensor.detach().cpu().double().numpy()
