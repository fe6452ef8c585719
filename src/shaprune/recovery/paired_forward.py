"""Run a dense and a pruned network side by side and collect each consumer's inputs and target outputs.

Two sources with one interface: `stream_consumers` (both networks operation by operation over all batches, one forward
pass each) and `stream_consumers_one_by_one` (a forward pass of both per consumer, for networks that cannot be traced or
do not fit in memory). Both yield a consumer's name and, per batch, the pairs (input in the pruned network, wanted
output) of all its calls; the caller refits the consumer before it asks for the next. Where the output of a consumer
that is called once is added to another branch (a residual block), the wanted output also makes up for what that branch
has lost. Where the two networks choose other rows for a consumer (routing, sorting), a batch has no pairs.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from shaprune.network.batches import Forward, Inputs, call, copied_inputs, length, pick_rows, run, tensor_bytes
from shaprune.network.forward.trace import Env, Segment, Trace, UntraceableError, trace_model
from shaprune.network.layers.kinds import channel_axis
from shaprune.recovery.residual_partner import LayerCall, count_calls, record_calls
from shaprune.recovery.selected_rows import RowSelections, picking_indices

CallPairs = list[tuple[Tensor, Tensor]]  # per call of a consumer in one batch: what it reads, what it should give
ConsumerStream = Iterator[tuple[str, Iterator[CallPairs | None]]]  # None: other rows than in the dense network
KeptOutputs = Mapping[str, Tensor]  # consumer -> which of the dense layer's outputs it still has

_ADDITIONS: tuple[Any, ...] = (operator.add, operator.iadd, torch.add, "add", "add_")


def paired_traces(small: nn.Module, teacher: nn.Module, inputs: Inputs) -> tuple[Trace, Trace] | None:
    """Both networks as matching lists of operations that do on ``inputs`` what they do; None where there are none."""
    few = pick_rows(inputs, slice(2))
    try:
        pair = trace_model(small, few), trace_model(teacher, few)
    except UntraceableError:
        return None
    names = [[(n.name, n.op) for n in trace.nodes] for trace in pair]
    return pair if names[0] == names[1] else None


def paired_bytes(pair: tuple[Trace, Trace], batches: Sequence[Inputs]) -> int:
    """Most bytes that the activations of all batches take at once in both networks, measured on the first batch."""
    peak = 0

    def watch(node: fx.Node, env: Env) -> None:
        nonlocal peak
        peak = max(peak, tensor_bytes(env))

    for trace in pair:
        _whole(trace).run(trace.feed(copied_inputs(batches[0])), watch=watch)
    return 2 * peak * -(-sum(length(b) for b in batches) // length(batches[0]))


def stream_consumers(pair: tuple[Trace, Trace], kept: KeptOutputs, batches: Sequence[Inputs]) -> ConsumerStream:
    """Yield each consumer just before the pruned network runs it.

    Where the consumer's output is added to another branch (a residual block), the wanted output also makes up for what
    that branch has lost: the *sum* is to be that of the dense network, not only this summand. A consumer that is called
    more than once takes a forward pass of its own for the pairs of all calls, and so do all where rows are picked.
    """
    ours, theirs = (_whole(trace) for trace in pair)
    our_envs, their_envs = ([trace.feed(copied_inputs(b)) for b in batches] for trace in pair)
    partner = dict(zip(pair[0].nodes, pair[1].nodes, strict=True))
    picked = False  # whether rows have been picked by indices
    calls = Counter(pair[0].modules[str(node.target)] for node in ours.nodes if node.op == "call_module")
    done: set[str] = set()
    for node in ours.nodes:
        name, other = str(node.target), partner[node]
        for env in their_envs:
            env[other] = theirs.trace.run_node(other, env)
        picked = picked or _picks_rows(other, their_envs[0])
        if node.op == "call_module" and name in kept and name not in done:
            done.add(name)
            source = node.args[0] if node.args else None
            if calls[pair[0].modules[name]] == 1 and isinstance(source, fx.Node) and not picked:
                missing = _missing(pair, node, partner, kept[name])
                yield (
                    name,
                    (
                        [(a[source], _outputs(node, pair[0], b[other], kept[name]) + missing(a, b))]
                        for a, b in zip(our_envs, their_envs, strict=True)
                    ),
                )
            else:
                every = [None] * len(batches)
                yield name, _recorded(pair[0].model, pair[1].model, name, kept[name], batches, call, every)
        for env in our_envs:
            env[node] = ours.trace.run_node(node, env)
            ours.forget(node, env)
        for env in their_envs:
            theirs.forget(other, env)


def stream_consumers_one_by_one(
    small: nn.Module, teacher: nn.Module, kept: KeptOutputs, batches: Sequence[Inputs], forward: Forward
) -> ConsumerStream:
    """Yield each consumer with a forward pass of both networks for its pairs."""
    counts = [count_calls(teacher, kept, partial(run, teacher, inputs, forward)) for inputs in batches]
    for name, outputs in kept.items():
        yield name, _recorded(small, teacher, name, outputs, batches, forward, [count[name] for count in counts])


def _recorded(
    small: nn.Module,
    teacher: nn.Module,
    name: str,
    outputs: Tensor,
    batches: Sequence[Inputs],
    forward: Forward,
    counts: Sequence[int | None],
) -> Iterator[CallPairs | None]:
    layer, dense = small.get_submodule(name), teacher.get_submodule(name)
    for inputs, n_calls in zip(batches, counts, strict=True):
        selections = RowSelections()
        theirs = record_calls(dense, partial(run, teacher, inputs, forward), n_calls, selections)
        selections.compare()
        ours = record_calls(layer, partial(run, small, inputs, forward), n_calls, selections)
        if len(ours) == len(theirs) and all(map(partial(_is_pair, layer), ours, theirs)):
            yield [(a.read, _wanted(layer, a, b, outputs)) for a, b in zip(ours, theirs, strict=True)]
        else:
            yield None


def _is_pair(layer: nn.Module, ours: LayerCall, theirs: LayerCall) -> bool:
    """Whether two calls of a layer read the same rows of both networks."""
    shapes = [list(call.given.shape) for call in (ours, theirs)]
    for shape in shapes:
        del shape[channel_axis(layer, len(shape))]
    return not ours.reordered and shapes[0] == shapes[1]


def _wanted(layer: nn.Module, ours: LayerCall, theirs: LayerCall, outputs: Tensor) -> Tensor:
    """What a call should give: the dense layer's outputs, and what the branch that it is added to has lost."""
    dim = partial(channel_dim, layer)
    given, lost = theirs.given, theirs.added
    wanted = given.index_select(dim(given), outputs.to(given.device))
    if ours.added is None or lost is None:
        return wanted
    if lost.shape[dim(lost)] == given.shape[dim(given)] != len(outputs):
        lost = lost.index_select(dim(lost), outputs.to(lost.device))
    return wanted + (lost - ours.added) if ours.added.shape == lost.shape == wanted.shape else wanted


def norms_after(trace: Trace) -> dict[str, nn.modules.batchnorm._BatchNorm]:
    """Layers whose output a batch-norm with running statistics alone reads: name -> the norm."""
    found: dict[str, nn.modules.batchnorm._BatchNorm] = {}
    ran = [str(n.target) for n in trace.nodes if n.op == "call_module"]
    for node in trace.nodes:
        if node.op == "call_module" and len(node.users) == 1 and ran.count(str(node.target)) == 1:
            user = next(iter(node.users))
            norm = trace.modules.get(str(user.target)) if user.op == "call_module" else None
            once = ran.count(str(user.target)) == 1
            if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_mean is not None and once:
                found[str(node.target)] = norm
    return found


def _picks_rows(node: fx.Node, env: Env) -> bool:
    """Whether an operation picks rows by indices that the network has computed."""
    name = getattr(node.target, "__name__", str(node.target))
    args, kwargs = fx.map_arg((node.args, node.kwargs), env.get) if node.op.startswith("call_") else ((), {})
    return bool(picking_indices(name, args, kwargs))


def channel_dim(layer: nn.Module, output: Tensor) -> int:
    """Where the channels of a consumer's output are."""
    return channel_axis(layer, output.ndim)


def _whole(trace: Trace) -> Segment:
    return Segment(trace, [n for n in trace.nodes if n.op != "placeholder"])


def _outputs(node: fx.Node, trace: Trace, output: Tensor, kept: Tensor) -> Tensor:
    return output.index_select(channel_dim(trace.modules[str(node.target)], output), kept.to(output.device))


def _missing(
    pair: tuple[Trace, Trace], node: fx.Node, partner: Mapping[fx.Node, fx.Node], kept: Tensor
) -> Callable[[Env, Env], Tensor | float]:
    """What the branch that ``node``'s output is added to has lost, in units of that output; 0 where there is none.

    Between the consumer and the sum there may be a batch-norm (its scale is divided out) and layers that do nothing in
    eval mode.
    """
    trace = pair[0]
    last, scale = node, None
    while len(last.users) == 1:
        user = next(iter(last.users))
        module = trace.modules.get(str(user.target)) if user.op == "call_module" else None
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and scale is None and module.running_var is not None:
            gain = module.weight if module.weight is not None else torch.ones_like(module.running_var)
            scale = gain / torch.sqrt(module.running_var + module.eps)
        elif not isinstance(module, (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)):
            break
        last = user
    user = next(iter(last.users)) if len(last.users) == 1 else last
    branches = [a for a in user.args if isinstance(a, fx.Node) and a is not last]
    if user.target not in _ADDITIONS or user.kwargs or len(user.args) != 2 or len(branches) != 1:
        return lambda ours, theirs: 0.0
    branch = branches[0]

    def missing(ours: Env, theirs: Env) -> Tensor | float:
        have, want = _value(trace, branch, ours), _value(pair[1], partner[branch], theirs)
        if not isinstance(have, Tensor) or have.ndim < 2:
            return 0.0
        dim = channel_dim(trace.modules[str(node.target)], have)
        want = want.index_select(dim, kept.to(want.device)) if want.shape[dim] != have.shape[dim] else want
        if want.shape != have.shape or have.shape[dim] != len(kept):
            return 0.0
        if scale is None:
            return cast(Tensor, want - have)
        dead = scale.abs() < 1e-3 * scale.abs().max()
        inverse = torch.where(dead, torch.zeros_like(scale), 1 / torch.where(dead, torch.ones_like(scale), scale))
        lost: Tensor = (want - have) * inverse.view([-1 if d == dim else 1 for d in range(have.ndim)])
        return lost

    return missing


def _value(trace: Trace, node: fx.Node, env: Env) -> Any:
    """The value of an operation, run now if its turn has not come yet."""
    if node not in env:
        scratch = dict(env)
        for source in node.all_input_nodes:
            scratch[source] = _value(trace, source, scratch)
        return trace.run_node(node, scratch)
    return env[node]
