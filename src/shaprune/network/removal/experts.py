"""Experts of a mixture as players: an `nn.ModuleList` or `nn.ModuleDict` beside an `nn.Linear` router.

The router has one output per expert. Where an expert is absent, its output is minus infinity, so that a softmax behind
it (or before it, over the top k) shares the weight out among the others: what cutting the router's rows does. Without
any expert a mixture adds nothing: its output is zero.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from shaprune.network.batches import Inputs, call, transform
from shaprune.network.hooks import hooked
from shaprune.network.layers.kinds import stored_tensors
from shaprune.network.removal.masks import MaskSite, each_row
from shaprune.players.candidate import Candidate
from shaprune.players.layer_costs import Layer
from shaprune.players.players import Member, Skipped

Listed = (nn.ModuleList, nn.ModuleDict)
_ROUTERS = ("gate", "gating", "router", "switch")
_COUNTS = ("num_experts", "n_experts", "num_local_experts", "n_routed_experts", "num_routed_experts")
_TOP_K = ("top_k", "topk", "k", "num_experts_per_tok", "num_selected_experts")


@dataclass(frozen=True, eq=False)
class RouterMask(MaskSite):
    """The output of a router (..., experts): minus infinity for absent experts.

    Attributes:
        mixture: name of the module around router and experts; in rows without any expert its output is zero.
    """

    mixture: str

    def attach(self, model: nn.Module, mask: Tensor) -> list[RemovableHandle]:
        kept = self.columns(mask) > 0
        if bool(kept.all()):
            return []
        no_player = ~kept.any(1, keepdim=True)

        def behind_router(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            absent = ~each_row(kept | no_player, len(output), self.module)
            return output.masked_fill(absent.view(len(output), *[1] * (output.ndim - 2), -1), float("-inf"))

        def behind_mixture(module: nn.Module, args: Any, output: Any) -> Any:
            y = output[0] if isinstance(output, tuple) else output
            empty = each_row(no_player, len(y), self.mixture)
            y = y.masked_fill(empty.view(-1, *[1] * (y.ndim - 1)), 0)
            return (y, *output[1:]) if isinstance(output, tuple) else y

        handles = [model.get_submodule(self.module).register_forward_hook(behind_router)]
        if bool(no_player.any()):
            handles.append(model.get_submodule(self.mixture).register_forward_hook(behind_mixture))
        return handles


def remove_experts(model: nn.Module, name: str, experts: list[int]) -> None:
    """Delete experts from their list, and set how many are left in the mixture; the router is cut as a layer.

    In an `nn.ModuleDict` those that stay get the first names, as in an `nn.ModuleList`.
    """
    listed = model.get_submodule(name)
    assert isinstance(listed, Listed)
    owner, dense = model.get_submodule(mixture_name(name)), len(listed)
    if isinstance(listed, nn.ModuleDict):
        keys, modules = list(listed), list(listed.values())
        listed.clear()
        stay = [module for i, module in enumerate(modules) if i not in experts]
        listed.update(dict(zip(keys, stay, strict=False)))
    else:
        for i in sorted(experts, reverse=True):
            del listed[i]
    inside = {module for expert in listed.children() for module in expert.modules()}
    for module in (module for module in owner.modules() if module not in inside):
        for count in _COUNTS:
            value = getattr(module, count, None)
            if type(value) is int and value == dense:
                setattr(module, count, len(listed))


def mixture_name(name: str) -> str:
    """The name of the module that a child named ``name`` stands in."""
    return name.rpartition(".")[0]


def find_experts(
    copy: nn.Module, inputs: Inputs, layers: Mapping[str, Layer]
) -> tuple[list[Candidate], list[Skipped], dict[str, Layer]]:
    """Every mixture as a candidate, its experts being the players.

    Args:
        copy: a private copy, in eval mode.
        inputs: example inputs.
        layers: the costs of all layers that ran.

    Returns:
        Candidates; lists of experts that are none, with the reason; and the costs of experts and routers. Where a
        router picks the top k, what one expert does not compute another one does, so that only the router's
        multiply-adds leave with an expert.
    """
    tensor_first = _observe_calls(copy, inputs)
    found: list[Candidate] = []
    skipped = [Skipped(n, 0, why) for n, m in copy.named_modules() if (why := fused_experts(n, m)) is not None]
    costs: dict[str, Layer] = {}
    for name, listed in _expert_lists(copy):
        n = len(listed)
        routers = _routers(copy.get_submodule(mixture_name(name)), mixture_name(name), n)
        if not routers and "expert" not in name.rpartition(".")[2].lower():
            continue  # a list of layers
        reason = _refusal(copy, name, listed, routers, layers, tensor_first)
        if reason is None and any(name.startswith(f"{other.name}.") for other in found):
            reason = "it stands inside an expert of another mixture"
        if reason is not None:
            skipped.append(Skipped(name, 0, reason))
            continue
        k = _top_k(copy.get_submodule(mixture_name(name)), n)
        each = _macs(name, list(listed._modules), layers)
        macs = each[0] if k is None and len(set(each)) == 1 else 0.0
        first = next(listed.children())
        params = sum(p.numel() for p in first.parameters())
        buffers = stored_tensors(first) - 4 * params
        outputs = [x.activations(x.n_in, x.n_out) for key, x in layers.items() if key.startswith(f"{name}.")]
        activation = 0.0 if macs == 0.0 else sum(outputs) / n
        costs[name] = Layer(
            "expert", n, n, 1, params, False, macs, least=k or 1, buffers=buffers, activation=activation
        )
        costs[routers[0]] = layers[routers[0]]
        players = tuple((i,) for i in range(n))
        found.append(Candidate(name, (Member(name, "expert", players), Member(routers[0], "out", players))))
    return found, skipped, costs


def _expert_lists(model: nn.Module) -> Iterator[tuple[str, nn.ModuleList | nn.ModuleDict]]:
    for name, module in model.named_modules():
        if isinstance(module, Listed) and name and len(module) > 1 and len({type(m) for m in module.children()}) == 1:
            yield name, module


def _routers(mixture: nn.Module, name: str, n: int) -> list[str]:
    """Names of the linear layers beside the experts, or in a router beside them, that may be their router."""
    return [
        ".".join(part for part in (name, key, inner) if part)
        for key, child in mixture.named_children()
        if any(word in key.lower() for word in _ROUTERS)
        for inner, layer in child.named_modules()
        if isinstance(layer, nn.Linear) and layer.out_features == n
    ]


def _refusal(
    copy: nn.Module,
    name: str,
    listed: nn.ModuleList | nn.ModuleDict,
    routers: list[str],
    layers: Mapping[str, Layer],
    tensor_first: Mapping[nn.Module, bool],
) -> str | None:
    """Why the experts of a list cannot leave one by one."""
    mixture, n = copy.get_submodule(mixture_name(name)), len(listed)
    if len(routers) != 1:
        what = f"{' and '.join(routers)} could all be its router" if routers else "no such router stands beside it"
        return f"experts need one nn.Linear router with {n} outputs (named {', '.join(_ROUTERS)}), and {what}"
    if routers[0] not in layers or mixture not in tensor_first:
        return f"{routers[0]} or the module around it was not called on the example inputs"
    if not tensor_first[mixture]:
        return "the module around it does not return a tensor, or a tuple that starts with one"
    if _top_k(mixture, n) == n:
        return f"the mixture picks the top {n} of {n} experts, so none can leave"
    if len({sum(p.numel() for p in expert.parameters()) for expert in listed.children()}) > 1:
        return "its experts differ in size"
    holders = Counter(id(p) for _, p in copy.named_parameters(remove_duplicate=False))
    inside = [*listed.parameters(), *copy.get_submodule(routers[0]).parameters()]
    if any(holders[id(p)] > 1 for p in inside):
        return "its experts or the router share parameters with others"
    return None


def _macs(name: str, keys: list[str], layers: Mapping[str, Layer]) -> list[float]:
    """Multiply-adds that each expert was seen to do."""
    ran = [(key, layer.macs(layer.n_in, layer.n_out)) for key, layer in layers.items()]
    heads = [f"{name}.{key}" for key in keys]
    return [sum(macs for key, macs in ran if key == head or key.startswith(f"{head}.")) for head in heads]


def _top_k(mixture: nn.Module, n: int) -> int | None:
    """How many experts a mixture picks; None where it does not say."""
    values = (getattr(mixture, name, None) for name in _TOP_K)
    return next((v for v in values if type(v) is int and 1 <= v <= n), None)


def _observe_calls(copy: nn.Module, inputs: Inputs) -> dict[nn.Module, bool]:
    """The modules that are called, and whether they return a tensor first."""
    seen: dict[nn.Module, bool] = {}

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        y = output[0] if type(output) is tuple and output else output
        seen[module] = seen.get(module, True) and isinstance(y, Tensor)

    with hooked(module.register_forward_hook(hook) for module in copy.modules()), torch.no_grad():
        call(copy, transform(inputs, torch.clone))
    return seen


def fused_experts(name: str, module: nn.Module) -> str | None:
    """Why experts stay whose weights are one tensor (experts, rows, columns); None where there is none."""
    if "expert" not in f"{name.rpartition('.')[2]} {type(module).__name__}".lower():
        return None
    shapes = [tuple(p.shape) for p in module.parameters(recurse=False) if p.ndim == 3]
    if not shapes:
        return None
    size = " x ".join(str(n) for n in shapes[0])
    return f"its experts are fused parameters ({size}), one tensor for all; only experts that are modules can leave"
