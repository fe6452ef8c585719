"""Models that are refused before any work, because a layer cannot be masked and cut, each with the next step."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod

from shaprune.errors import InputError
from shaprune.network.model_turns import turn

_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.ao.nn.sparse", "bitsandbytes.")
_FLOAT = ("FloatFunctional", "FXFloatFunctional")  # they stand among the quantised modules and compute in floats
_HOOKS = {"WeightNorm": "remove_weight_norm", "SpectralNorm": "remove_spectral_norm"}  # of torch.nn.utils


def check_model(model: nn.Module) -> None:
    """Refuse models whose layers cannot be masked and cut, before anything is run.

    Raises:
        InputError: no module; a wrapper (compiled, parallel, sharded, scripted); quantised, sparse, lazy or meta
            weights; masks and norms that recompute a weight. The layer is named.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"the model is a {type(model).__name__}; it must be a torch.nn.Module")
    with turn(model):
        for name, module in model.named_modules():
            reason = _wrapped(module) or _recomputed(module)
            if reason is not None:
                raise InputError(f"layer {name!r} {reason}" if name else f"the model {reason}")
            for key, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
                reason = _unusable(tensor)
                if reason is not None:
                    raise InputError(f"{key!r} of layer {name!r} {reason}" if name else f"the model's {key!r} {reason}")


def _wrapped(module: nn.Module) -> str | None:
    """What a module is instead of a plain one, and what to pass."""
    kind = type(module)
    names = {base.__name__ for base in kind.__mro__}
    if kind.__name__ == "OptimizedModule":
        return "is a wrapper of torch.compile; pass its ._orig_mod, and compile what comes out"
    if getattr(module, "_compiled_call_impl", None) is not None:
        return "was compiled in place by .compile(); pass copy.deepcopy(model), which is not compiled"
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return f"is a wrapper of {kind.__name__}; pass its .module, and wrap what comes out"
    if names & {"FullyShardedDataParallel", "FSDPModule"}:
        return (
            "is sharded by FSDP, so that no process holds its weights; gather the full state dict "
            "(torch.distributed.checkpoint.state_dict), load it into a plain model, and pass that"
        )
    if isinstance(module, torch.jit.ScriptModule):
        return "is compiled by TorchScript; pass the Python module that it was made from"
    if "FakeQuantizeBase" in names and getattr(module, "fake_quant_enabled", torch.zeros(1)).any():
        return (
            f"rounds to the levels of a quantised network ({kind.__name__}), behind which no channel can be followed; "
            "prune the float model and prepare what comes out, or call "
            "model.apply(torch.ao.quantization.disable_fake_quant) first"
        )
    if kind.__module__.startswith(_QUANTISED) and kind.__name__ not in _FLOAT:
        return f"is quantised ({kind.__module__}.{kind.__name__}); prune the float model, and quantise what comes out"
    return None


def _recomputed(module: nn.Module) -> str | None:
    """Hooks that recompute a weight before every run, which a cut would not reach."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, BasePruningMethod):
            return (
                f"carries a mask of torch.nn.utils.prune on its {hook._tensor_name}; call "
                f"torch.nn.utils.prune.remove(layer, {hook._tensor_name!r}) first"
            )
        remove = _HOOKS.get(type(hook).__name__)
        if remove is not None:
            return f"carries a {type(hook).__name__} hook; call torch.nn.utils.{remove}(layer) first"
    return None


def _unusable(tensor: Tensor) -> str | None:
    """Why a parameter or buffer cannot be cut."""
    if isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer)):
        return "has no shape yet; run the model once on example inputs"
    if type(tensor).__name__ == "DTensor":
        return (
            "is a DTensor, of which this process may hold a shard; gather the full state dict "
            "(torch.distributed.checkpoint.state_dict), load it into a plain model, and pass that"
        )
    if tensor.is_meta:
        return "is on the meta device and has no values; call model.to_empty(device='cpu') and load the weights"
    if tensor.is_quantized:
        return "is quantised; prune the float model, and quantise what comes out"
    if tensor.layout != torch.strided:
        return f"has the sparse layout {tensor.layout}; call .to_dense() on it"
    return None
