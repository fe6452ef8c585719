"""A network as a list of operations (torch.fx), so that a part of it can be run on its own."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from shaprune.network.batches import Inputs, all_equal, call, copied_inputs, tensors, transform
from shaprune.network.forward.fx_tracing import CONSTANT, graph_of

Env = dict[fx.Node, Any]
Intercept = Callable[[fx.Node, tuple[Any, ...]], tuple[Any, ...]]


class Length(NamedTuple):
    """How a value grows with the number of examples: ``batch_first``: one entry each; ``grows``: in any way."""

    batch_first: bool
    grows: bool


class UntraceableError(Exception):
    """Why a model cannot be taken apart; it is then run whole."""


class Trace:
    """The operations of a model in order, sharing its layers: weights changed in the model are changed here.

    Every layer of a known kind is one operation, also where its class is the user's own, and is given its input by
    position.

    Args:
        model: a module in eval mode.

    Raises:
        UntraceableError: torch.fx cannot follow the model's Python code.
    """

    def __init__(self, model: nn.Module) -> None:
        self.graph = _graph(model)
        self.model = model
        self.nodes: list[fx.Node] = list(self.graph.nodes)
        self._lengths: dict[fx.Node, Length] | None = None
        self.modules = dict(model.named_modules(remove_duplicate=False))
        for node in self.nodes:
            _pass_by_position(node, self.layer(node))

    def lengths(self, inputs: Inputs) -> dict[fx.Node, Length]:
        """How the value of every operation grows with the number of examples; learned once, from the first example."""
        if self._lengths is None:
            one, three = (self._lengths_of(transform(inputs, partial(_repeated, rows=rows)), rows) for rows in (1, 3))
            self._lengths = {
                node: Length(one[node][1] and three[node][1], one[node][0] != three[node][0]) for node in self.nodes
            }
        return self._lengths

    def _lengths_of(self, inputs: Inputs, rows: int) -> dict[fx.Node, tuple[list[int], bool]]:
        """Of the tensors in every value, their lengths, and whether all have ``rows`` rows."""
        found = {}

        def watch(node: fx.Node, env: Env) -> None:
            held = tensors(env[node])
            found[node] = ([len(t) for t in held if t.ndim], bool(held) and all(t.shape[:1] == (rows,) for t in held))

        env = self.feed(inputs)
        for node in [*env]:
            watch(node, env)
        Segment(self, [node for node in self.nodes if node not in env]).run(env, watch=watch)
        return found

    def feed(self, inputs: Inputs) -> Env:
        """Bind inputs to the placeholders: a dict by name, a tuple by position, a tensor to the first."""
        holders = [n for n in self.nodes if n.op == "placeholder"]
        given: dict[Any, Any]
        if isinstance(inputs, dict):
            given = inputs
        else:
            values = inputs if isinstance(inputs, (tuple, list)) else (inputs,)
            given = {n.target: v for n, v in zip(holders, values, strict=False)}
        return {n: given.get(n.target, n.args[0] if n.args else None) for n in holders}

    def run_node(
        self, node: fx.Node, env: Env, intercept: Intercept | None = None, instead: nn.Module | None = None
    ) -> Any:
        """Run one operation on the values in ``env``; ``intercept`` may change its positional arguments first.

        ``instead`` is called in place of the node's own layer.
        """
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), env.__getitem__)
        if intercept is not None:
            args = intercept(node, args)
        if node.op == "call_module":
            return (instead or self.modules[str(node.target)])(*args, **kwargs)
        if node.op == "call_function":
            return node.target(*args, **kwargs)  # type: ignore[operator]
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if node.op == "get_attr":
            made = node.meta.get(CONSTANT)
            return operator.attrgetter(str(node.target))(self.model) if made is None else made
        assert node.op == "output"
        return args[0]

    def layer(self, node: fx.Node) -> nn.Module | None:
        """The layer that an operation calls."""
        return self.modules.get(str(node.target)) if node.op == "call_module" else None

    def reproduces(self, inputs: Inputs) -> bool:
        """Whether running the operations gives what the model itself gives."""
        env = self.feed(copied_inputs(inputs))
        for node in self.nodes:
            if node not in env:
                env[node] = self.run_node(node, env)
        ours, theirs = tensors(env[self.nodes[-1]]), tensors(call(self.model, copied_inputs(inputs)))
        return all_equal(ours, theirs)


def _repeated(tensor: Tensor, rows: int) -> Tensor:
    """The first example, ``rows`` times."""
    return tensor[:1].expand(rows, *tensor.shape[1:]).clone() if tensor.ndim else tensor


def _graph(model: nn.Module) -> fx.Graph:
    """Trace a model, with torch's compound modules taken apart where that is possible.

    Raises:
        UntraceableError: torch.fx cannot follow the model's Python code.
    """
    with suppress(Exception):
        return graph_of(model, opened=True)
    try:
        return graph_of(model, opened=False)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UntraceableError(reason) from error


def _pass_by_position(node: fx.Node, layer: nn.Module | None) -> None:
    """Move the input of a layer that is called by keyword to the front of its arguments."""
    if layer is None or node.args or not node.kwargs:
        return
    first = next(iter(inspect.signature(layer.forward).parameters), None)
    if first in node.kwargs:
        node.args = (node.kwargs[first],)
        node.kwargs = {key: value for key, value in node.kwargs.items() if key != first}


def trace_model(model: nn.Module, inputs: Inputs) -> Trace:
    """The operations of a model, if they do on ``inputs`` what the model does.

    Raises:
        UntraceableError: it cannot be traced, or was traced along a way that these inputs do not take.
    """
    try:
        trace = Trace(model)
    except UntraceableError as reason:
        raise UntraceableError(f"it cannot be traced ({reason})") from reason
    try:
        same = trace.reproduces(inputs)
    except Exception as error:
        raise UntraceableError(f"its trace does not run ({type(error).__name__}: {error})") from error
    if not same:
        raise UntraceableError("its trace does not reproduce its outputs")
    return trace


class Segment:
    """Some operations of a trace, run in order; values that nothing needs any more are dropped."""

    def __init__(self, trace: Trace, nodes: Sequence[fx.Node], keep: Sequence[fx.Node] = ()) -> None:
        self.trace = trace
        self.nodes = list(nodes)
        last_use: dict[fx.Node, fx.Node] = {}
        for node in self.nodes:
            for source in node.all_input_nodes:
                last_use[source] = node
        kept = set(keep)
        self.overwritten = {n: fresh for n in self.nodes if (fresh := _inplace_source(trace, n)) is not None}
        self.dead: dict[fx.Node, list[fx.Node]] = {}
        for source, user in last_use.items():
            if source not in kept:
                self.dead.setdefault(user, []).append(source)
        self.instead: dict[fx.Node, nn.Module] = {}

    def fold(self) -> None:
        """Make every batch-norm part of the convolution in front of it, with the weights as they are now.

        One operation less to run and, what takes longer, to derive. Results differ by rounding.
        """
        ours = set(self.nodes)
        for source, node in convolutions_to_fold(self.trace):
            if source in ours and node in ours:
                layer, norm = (self.trace.modules[str(n.target)] for n in (source, node))
                self.instead[source] = fuse_conv_bn_eval(layer, norm).requires_grad_(False)
                self.instead[node] = nn.Identity()

    def run(
        self, env: Env, intercept: Intercept | None = None, watch: Callable[[fx.Node, Env], None] | None = None
    ) -> Any:
        """Run all operations in ``env``, which is consumed; return the value of the last."""
        value = None
        for node in self.nodes:
            if node in self.overwritten:
                value = env[node] = torch.relu_(env[self.overwritten[node]])
            else:
                value = env[node] = self.trace.run_node(node, env, intercept, self.instead.get(node))
            if watch is not None:
                watch(node, env)
            self.forget(node, env)
        return value

    def forget(self, node: fx.Node, env: Env) -> None:
        """Drop the values that only ``node`` and operations before it needed."""
        for source in self.dead.get(node, ()):
            env.pop(source, None)


def convolutions_to_fold(trace: Trace) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Convolutions with the batch-norms that can be made part of them, as operations of a trace."""
    for node in trace.nodes:
        source = _convolution_to_fold(trace, node)
        if source is not None:
            yield source, node


def _inplace_source(trace: Trace, node: fx.Node) -> fx.Node | None:
    """The source of a plain ReLU that may be written in place: a fresh output of a layer, or sum, read once."""
    module = trace.layer(node)
    relu = node.target in (F.relu, torch.relu) if module is None else type(module) is nn.ReLU and not has_hooks(module)
    source = _only_source(node) if relu else None
    if source is None:
        return None
    summed = source.target in (operator.add, torch.add) and "out" not in source.kwargs
    return source if summed or _plain(trace, source, (nn.Linear, *_CONVOLUTIONS, *_NORMS)) else None


def _convolution_to_fold(trace: Trace, node: fx.Node) -> fx.Node | None:
    """The convolution that a batch-norm, which uses what it has learned, can be made part of: nothing else reads it."""
    norm: Any = trace.layer(node)
    if not _plain(trace, node, _NORMS) or norm.training or norm.running_mean is None:
        return None
    source = _only_source(node)
    return source if source is not None and _plain(trace, source, _CONVOLUTIONS) else None


def _only_source(node: fx.Node) -> fx.Node | None:
    """The only argument of an operation, where nothing else reads it."""
    if len(node.args) != 1 or any(node.kwargs.values()) or not isinstance(node.args[0], fx.Node):
        return None
    return node.args[0] if len(node.args[0].users) == 1 else None


def _plain(trace: Trace, node: fx.Node, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Whether an operation calls a layer of just such a kind, without hooks."""
    layer = trace.layer(node)
    return type(layer) in kinds and not has_hooks(layer)


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def has_hooks(module: nn.Module | None) -> bool:
    """Whether someone listens to a layer's inputs or outputs."""
    return module is not None and bool(module._forward_hooks or module._forward_pre_hooks)


def name_if_nonfinite(node: fx.Node, value: Any) -> str | None:
    """The name of ``node`` if its value holds NaN or infinity."""
    bad = any(isinstance(t, Tensor) and t.is_floating_point() and not torch.isfinite(t).all() for t in tensors(value))
    if not bad or node.op == "call_module":
        return str(node.target) if bad else None
    within = list(node.meta.get("nn_module_stack", {}))  # the modules whose forward the operation stands in
    return f"{within[-1]}.{node.name}" if within else node.name
