"""Rotary positions (RoPE, arXiv:2104.09864) in the half-split convention of Hugging Face models.

Channel pair (i, i + head_dim/2) of a token at position p is turned by p·theta^(-2i/head_dim). Only differences of
positions matter to attention, so any origin gives the same result.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

PHASE_BITS = 32


def inverse_frequencies(head_dim: int, theta: float) -> Tensor:
    """Radians a token turns each channel pair: `[head_dim / 2]`, float32, by upstream's own formula."""
    return 1.0 / (theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim))


def phase_steps(head_dim: int, theta: float) -> Tensor:
    """Turns a token as integers of 2^-32 turn: `[head_dim / 2]`, int64.

    `position · step mod 2^32` is the exact phase of `step` at any position below 2^31 (2.7 years of audio), where
    the float32 product `position · frequency` loses a radian after some days.
    """
    turns = inverse_frequencies(head_dim, theta).double() / (2 * math.pi)
    return torch.round(turns * 2**PHASE_BITS).to(torch.int64)


def exact_rotation(positions: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of positions of any size: int64 `[…]` and `phase_steps` `[D/2]` give `(cos, cos)` and `(-sin, sin)`.

    Both are `[…, D]`, and a token turns by `x·cos + swap(x)·sin`, where swap exchanges the two halves.
    """
    phase = torch.remainder(positions[..., None] * steps, 2**PHASE_BITS)
    angle = phase.to(torch.float32) * (2 * math.pi / 2**PHASE_BITS)
    cos, sin = torch.cos(angle), torch.sin(angle)
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def half_swap(head_dim: int) -> Tensor:
    """The matrix `[D, D]` that exchanges the halves of `[…, D]`, exactly: for few rows a matmul is one cheap node."""
    return torch.eye(head_dim).roll(head_dim // 2, dims=1)
