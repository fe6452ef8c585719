"""The part of a network behind a mask: everything before it does not depend on the coalition and is computed once.

`Cut` takes a trace apart at the consumers of the masked groups. `Whole` is the same interface for models that cannot be
traced. `FirstLinear` makes coalitions cheap where one linear layer reads the mask: its output is a sum of one
contribution per player, so players are added instead of recomputed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from shaprune.network.batches import Forward, Inputs, length, main_output, transform
from shaprune.network.masks import Edge, masked
from shaprune.network.trace import Env, Segment, Trace, first_not_finite, live_bytes

State = Any  # what the rest of a network needs of an example, batch first


class Whole:
    """Runs all of a model under masks at the consumers."""

    first_linear = None

    def __init__(self, model: nn.Module, edges: Sequence[Edge], forward: Forward) -> None:
        self.model, self.edges, self.forward = model, edges, forward

    def prepare(self, inputs: Inputs) -> State:
        """Nothing to precompute: the inputs themselves."""
        return inputs

    def run(self, state: State, mask: Tensor) -> Tensor:
        """Outputs of the rows ``state`` under ``mask`` (rows, n)."""
        with masked(self.model, self.edges, mask):
            return main_output(self.forward(self.model, state))

    def row_bytes(self, state: State, mask: Tensor) -> int:
        """Memory per row, from the outputs of all layers (those that are alive at the same time are fewer)."""
        total = 0

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            nonlocal total
            total = max(total, 4 * live_bytes((args, output)))

        handles = [m.register_forward_hook(hook) for m in self.model.modules() if not any(True for _ in m.children())]
        try:
            self.run(state, mask)
        finally:
            for handle in handles:
                handle.remove()
        return max(1, total // len(mask))

    def culprit(self, state: State, mask: Tensor) -> str | None:
        """The first layer whose output is not finite."""
        found: list[str] = []
        names = {m: n for n, m in self.model.named_modules()}

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not torch.isfinite(output).all():
                found.append(names[module])

        handles = [m.register_forward_hook(hook) for m in self.model.modules()]
        try:
            self.run(state, mask)
        finally:
            for handle in handles:
                handle.remove()
        return found[0] if found else None


class Cut:
    """Runs only what lies behind the masks."""

    def __init__(self, trace: Trace, edges: Sequence[Edge]) -> None:
        self.trace = trace
        self.edges = {edge.module: edge for edge in edges}
        consumers = [n for n in trace.nodes if n.op == "call_module" and n.target in self.edges]
        behind = _descendants(trace, consumers)
        rest = _closure(trace, behind)
        self.inlets = [n for n in trace.nodes if n not in rest and any(user in rest for user in n.users)]
        front = _ancestors(self.inlets)
        self.prefix = Segment(trace, [n for n in trace.nodes if n in front and n.op != "placeholder"], self.inlets)
        self.suffix = Segment(trace, [n for n in trace.nodes if n in rest])
        self.first_linear = _first_linear(trace, consumers, self.edges, self.suffix)

    def prepare(self, inputs: Inputs) -> State:
        """Values at the cut for a batch of inputs; what does not depend on the example is kept as it is."""
        rows = length(inputs)
        env = self.trace.feed(inputs)
        self.prefix.run(env)
        return {n: env[n] if _batch_first(env[n], rows) else _Fixed(env[n]) for n in self.inlets}

    def run(self, state: State, mask: Tensor) -> Tensor:
        """Outputs of the rows ``state`` under ``mask`` (rows, n)."""
        return main_output(self.suffix.run(_unfix(state), self._intercept(mask)))

    def row_bytes(self, state: State, mask: Tensor) -> int:
        """Most memory that one row takes at any moment."""
        peak = 0

        def watch(node: fx.Node, env: Env) -> None:
            nonlocal peak
            peak = max(peak, live_bytes(env))

        self.suffix.run(_unfix(state), self._intercept(mask), watch)
        return max(1, peak // len(mask))

    def culprit(self, state: State, mask: Tensor) -> str | None:
        """The first operation whose result is not finite."""
        found: list[str] = []

        def watch(node: fx.Node, env: Env) -> None:
            name = first_not_finite(node, env[node])
            if name is not None:
                found.append(name)

        self.suffix.run(_unfix(state), self._intercept(mask), watch)
        return found[0] if found else None

    def _intercept(self, mask: Tensor) -> Any:
        def intercept(node: fx.Node, args: tuple[Any, ...]) -> tuple[Any, ...]:
            edge = self.edges.get(str(node.target)) if node.op == "call_module" else None
            return args if edge is None else (edge.apply(args[0], mask), *args[1:])

        return intercept


@dataclass(frozen=True, eq=False)
class FirstLinear:
    """A linear layer (or plain convolution) as the only reader of a mask.

    Attributes:
        node: the layer's operation; source: what it reads.
        weight: (n, out, channels per player, *kernel) weights of each player's channels.
        columns: (n * channels per player,) the players' channels in player order.
        others: channels that no player owns.
        rest: what follows the layer.
    """

    layer: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
    node: fx.Node
    source: fx.Node
    weight: Tensor
    columns: Tensor
    others: Tensor
    rest: Segment

    def contributions(self, state: State) -> tuple[Tensor, Tensor]:
        """What each player adds to the layer's output, and what is there without any player.

        Returns:
            (E, n, out, ...) contributions and (E, out, ...) base, channels second (last for linear layers on 3-D inputs
            are moved there and back in `finish`).
        """
        x = state[self.source]
        n, out, per_player = self.weight.shape[:3]
        if isinstance(self.layer, nn.Linear):
            shape = x.shape[1:-1]
            x = x.movedim(-1, 1).reshape(len(x), x.shape[-1], -1)  # (E, features, P)
            ours = x[:, self.columns].view(len(x), n, per_player, -1)
            parts = torch.einsum("encp,noc->enop", ours, self.weight)
            base = torch.einsum("ecp,oc->eop", x[:, self.others], self.layer.weight[:, self.others])
            if self.layer.bias is not None:
                base = base + self.layer.bias[:, None]
            return parts.reshape(len(x), n, out, *shape), base.reshape(len(x), out, *shape)
        conv = _CONVOLUTIONS[x.ndim - 2]
        options: dict[str, Any] = {
            "stride": self.layer.stride,
            "padding": self.layer.padding,
            "dilation": self.layer.dilation,
        }
        parts = conv(x[:, self.columns], self.weight.flatten(0, 1), None, groups=n, **options)
        parts = parts.view(len(x), n, out, *parts.shape[2:])
        if len(self.others):
            base = conv(x[:, self.others], self.layer.weight[:, self.others], self.layer.bias, **options)
        else:
            base = torch.zeros_like(parts[:, 0])
            if self.layer.bias is not None:
                base += self.layer.bias.view(1, -1, *[1] * (base.ndim - 2))
        return parts, base

    def finish(self, state: State, output: Tensor) -> Tensor:
        """Run what follows the layer, given its ``output`` (rows, out, ...)."""
        env = _unfix({n: value for n, value in state.items() if n is not self.source or n in self.needed})
        env[self.node] = output.movedim(1, -1) if isinstance(self.layer, nn.Linear) else output
        return main_output(self.rest.run(env))

    @property
    def needed(self) -> set[fx.Node]:
        """Inlets that what follows the layer reads."""
        return {source for node in self.rest.nodes for source in node.all_input_nodes}


_CONVOLUTIONS: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@dataclass(frozen=True, eq=False)
class _Fixed:
    """A value at the cut that is the same for every example."""

    value: Any


def _unfix(state: dict[fx.Node, Any]) -> Env:
    return {n: v.value if isinstance(v, _Fixed) else v for n, v in state.items()}


def _batch_first(value: Any, rows: int) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == rows


def gather(state: State, rows: Tensor) -> State:
    """Rows of a state; an example may be taken several times."""
    return transform(state, lambda t: t.index_select(0, rows) if t.ndim else t)


def _descendants(trace: Trace, sources: Sequence[fx.Node]) -> set[fx.Node]:
    found = set(sources)
    for node in trace.nodes:
        if any(source in found for source in node.all_input_nodes):
            found.add(node)
    found.add(trace.nodes[-1])
    return found


def _ancestors(targets: Sequence[fx.Node]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    stack = list(targets)
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack += node.all_input_nodes
    return found


def _closure(trace: Trace, behind: set[fx.Node]) -> set[fx.Node]:
    """Add what must be recomputed per row: parameters, and shapes, which depend on the number of rows."""
    rest = set(behind)
    for node in reversed(trace.nodes):
        if node not in rest and any(user in rest for user in node.users) and (node.op == "get_attr" or _is_shape(node)):
            rest.add(node)
    return rest


def _is_shape(node: fx.Node) -> bool:
    """Whether a node computes with sizes: ``x.size(0)``, ``x.shape``, ``getattr``, and arithmetic on these."""
    if node.op == "call_method":
        return node.target in ("size", "dim", "numel")
    if node.op != "call_function":
        return False
    if node.target is getattr:
        return True
    name = getattr(node.target, "__name__", "")
    return name in ("getitem", "mul", "add", "sub", "floordiv", "truediv") and all(map(_is_shape, node.all_input_nodes))


def _first_linear(
    trace: Trace, consumers: Sequence[fx.Node], edges: dict[str, Edge], suffix: Segment
) -> FirstLinear | None:
    """The incremental form, where one plain linear layer or convolution reads the mask and players own alike."""
    if len(consumers) != 1 or len(consumers[0].args) != 1 or consumers[0].kwargs:
        return None
    node = consumers[0]
    layer, edge = trace.modules[str(node.target)], edges[str(node.target)]
    source = node.args[0]
    plain = type(layer) is nn.Linear or (
        type(layer) in (nn.Conv1d, nn.Conv2d, nn.Conv3d) and layer.groups == 1 and layer.padding_mode == "zeros"
    )
    hooked = bool(layer._forward_hooks or layer._forward_pre_hooks)
    if not plain or hooked or not isinstance(source, fx.Node) or source in suffix.nodes:
        return None
    n = edge.n_players
    owned = [torch.nonzero(edge.owners == player).flatten() for player in range(n + 1)]
    per_player = {len(channels) for channels in owned[:-1]}
    if len(per_player) != 1 or 0 in per_player:
        return None
    columns = torch.cat(owned[:-1])
    weight = layer.weight.detach()[:, columns]
    weight = weight.reshape(len(weight), n, -1, *weight.shape[2:]).transpose(0, 1).contiguous()
    rest = Segment(trace, [x for x in suffix.nodes if x is not node])
    return FirstLinear(layer, node, source, weight, columns, owned[-1], rest)
