"""Step functions that round activations as `passes.int8_matmuls` does.

Where trained weights answer a small change with a large one, activations of 14 bits may leave a stage 12 dB. So a graph
of integers is not compared with float32 but with the same roundings; what differs then are values that fell between
two codes and went the other way.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mimi_export.passes.int8_matmuls import FINER, STEPS, TINY

NUDGE = 0.3  # of the finer step, up and down in turns: so large a share of values is rounded otherwise
_PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__)


class RoundedProducts(TorchFunctionMode):
    """While it is entered, rows that are multiplied by one of `weights` are rounded twice first.

    With `otherwise` three values in ten go to the other side: what then differs is what roundings alone may do.
    """

    def __init__(self, weights: Iterable[Tensor], otherwise: bool = False) -> None:
        super().__init__()
        self._weights, self._otherwise = set(map(id, weights)), otherwise

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do as PyTorch does, but for those products."""
        if func not in _PRODUCTS or id(args[1]) not in self._weights:
            return func(*args, **(kwargs or {}))
        x, weight = args
        step, finer = x.new_tensor(1 / STEPS), x.new_tensor(1 / STEPS / FINER)
        peak = x.abs().amax(-1, keepdim=True).clamp(min=TINY)
        share = x / peak
        first = torch.round(share / step)
        second = (share - first * step) / finer
        if self._otherwise:
            second = second + NUDGE * (1 - 2 * (torch.arange(x.shape[-1]) % 2))
        second = torch.round(second)
        return (first + second / FINER) @ weight * (peak * step)
