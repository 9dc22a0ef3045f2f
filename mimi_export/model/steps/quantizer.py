"""The split residual vector quantiser, encoding and decoding, with every codebook stored once.

The nearest codebook entry needs no distances: |x - e|² = |x|² - 2(x·e - |e|²/2), so it is the largest x·e - |e|²/2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from mimi_export.model.steps.matmul import fixed, matmul, matmul_weight


class ResidualEncoder(nn.Module):
    """Latents to the codes of one residual quantiser.

    Args:
        projection: `[codebook_dim, hidden]` or `None` where upstream has none.
        codebooks: one `[codebook_size, codebook_dim]` a level, already divided by the cluster usage.
    """

    def __init__(self, projection: Tensor | None, codebooks: list[Tensor]) -> None:
        super().__init__()
        self.projection = None if projection is None else matmul_weight(projection)
        self.codebooks = nn.ParameterList(map(fixed, codebooks))
        self.offsets = nn.ParameterList(fixed(-(book.double() ** 2).sum(dim=1).float() / 2) for book in codebooks)

    def forward(self, latents: Tensor) -> list[Tensor]:
        """Encode `[frames, hidden]` to one int64 `[frames]` a level, coarse to fine."""
        residual = latents if self.projection is None else matmul(latents, self.projection)
        codes = []
        for index, (book, offset) in enumerate(zip(self.codebooks, self.offsets, strict=True)):
            code = functional.linear(residual, book, offset).argmax(dim=-1)
            codes.append(code)
            if index + 1 < len(self.codebooks):
                residual = residual - functional.embedding(code, book)
        return codes


class ResidualDecoder(nn.Module):
    """Codes of one residual quantiser, any number of levels from the first, to latents.

    Args:
        projection: `[hidden, codebook_dim]` or `None`.
        codebooks: as for `ResidualEncoder`.
    """

    def __init__(self, projection: Tensor | None, codebooks: list[Tensor]) -> None:
        super().__init__()
        self.projection = None if projection is None else matmul_weight(projection)
        self.table = fixed(torch.cat(codebooks))
        size = codebooks[0].shape[0]
        self.register_buffer("rows", torch.arange(len(codebooks))[:, None] * size)

    rows: Tensor

    def forward(self, codes: Tensor) -> Tensor:
        """Decode `[B, K, frames]` with 0 … all levels to `[B, frames, hidden]`."""
        entries = functional.embedding(codes + self.rows[: codes.shape[1]], self.table)
        total = entries.sum(dim=1)
        return total if self.projection is None else matmul(total, self.projection)
