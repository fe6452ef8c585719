"""A borrowed model comes back untouched, whatever happens while we use it."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from shaprune.errors import InputError
from shaprune.network.buffers import kept_buffers


@contextmanager
def borrowed(model: nn.Module, *, buffers: bool = True) -> Iterator[nn.Module]:
    """Borrow ``model`` in eval mode; training flags, random states, global flags and buffers are put back on any exit.

    Weights are not copied: they must not be written to.

    Args:
        model: the network.
        buffers: False where they are to change, as in a training.
    """
    flags = {module: module.training for module in model.modules()}
    with kept_globals(), kept_buffers(model) if buffers else nullcontext():
        model.eval()
        try:
            yield model
        finally:
            for module, flag in flags.items():
                module.training = flag


@contextmanager
def kept_globals() -> Iterator[None]:
    """Put random states (torch, CUDA, NumPy, Python), autograd mode and cuDNN flags back on any exit."""
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    grad = torch.is_grad_enabled()
    cudnn = torch.backends.cudnn
    cudnn_flags = cudnn.benchmark, cudnn.deterministic
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        np.random.set_state(numpy_state)
        random.setstate(python_state)
        if cuda_states:
            torch.cuda.set_rng_state_all(cuda_states)
        torch.set_grad_enabled(grad)
        cudnn.benchmark, cudnn.deterministic = cudnn_flags


def copied(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy that shares nothing with ``model``, or only what ``memo`` has in the place of an object (by its id).

    Raises:
        InputError: if the model cannot be copied.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"the model is a {type(model).__name__}; it must be a torch.nn.Module")
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise InputError(
            f"the model cannot be copied ({error}); detach tensors it has stored, then try again"
        ) from error


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter or buffer lives; the CPU for a model with neither."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")
