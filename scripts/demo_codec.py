"""The demo checkpoint's network as it is trained: upstream's modules, faster convolutions, codebooks that follow.

Upstream's `Conv1d` takes five times longer on a CPU for so few channels than one matrix product of the unfolded
signal; both give the same numbers. Sound lies as `[clips, time, channels]` here.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn
from transformers import MimiConfig, MimiModel

from mimi_export.model import upstream

WIDTH, DIM, ENTRIES, LEVELS = 128, 48, 2048, 8
SEMANTIC_DIMS = 4  # of DIM, the most important ones; the first codebook has them alone
DECAY, GAIN, DEAD = 0.998, 20.0, 0.05  # of the codebooks' running counts


def config() -> MimiConfig:
    """Mimi's geometry with few channels where time is fine: 2.9 million weights, codebooks included."""
    return MimiConfig(
        hidden_size=WIDTH, num_filters=16, intermediate_size=4 * WIDTH, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, head_dim=32, sliding_window=250, codebook_size=ENTRIES, codebook_dim=DIM,
        vector_quantization_hidden_dimension=DIM, num_quantizers=LEVELS, upsample_groups=WIDTH,
        upsampling_ratios=[4, 5, 6, 8], layer_scale_initial_scale=0.1,
    )  # fmt: skip


class _Convolution(torch.autograd.Function):
    """A convolution without padding, `[B, T, C]` to `[B, T', O]`, as one product of the unfolded signal."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
        rows, time, channels = x.shape
        out, _, kernel = weight.shape
        steps = (time - kernel) // stride + 1
        view = x.as_strided((rows, steps, kernel * channels), (time * channels, stride * channels, 1))
        columns = view.reshape(rows * steps, kernel * channels)
        matrix = weight.permute(2, 1, 0).reshape(kernel * channels, out)
        ctx.save_for_backward(columns, matrix)
        ctx.sizes = rows, time, channels, out, kernel, stride, steps
        return torch.addmm(bias, columns, matrix).view(rows, steps, out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        columns, matrix = ctx.saved_tensors
        rows, time, channels, out, kernel, stride, steps = ctx.sizes
        grad = grad.reshape(rows * steps, out)
        weight = (columns.T @ grad).view(kernel, channels, out).permute(2, 1, 0)
        x = None
        if ctx.needs_input_grad[0]:
            parts = (grad @ matrix.T).view(rows, steps, kernel // stride, stride, channels)
            x = grad.new_zeros(rows, time, channels)
            for part in range(kernel // stride):  # a kernel is one or two strides long, or the stride is 1
                begin = part * stride
                x[:, begin : begin + steps * stride].view(rows, steps, stride, channels).add_(parts[:, :, part])
        return x, weight, grad.sum(0), None


def _conv(x: Tensor, conv: nn.Conv1d) -> Tensor:
    stride = conv.stride[0]
    padded = F.pad(x, (0, 0, conv.kernel_size[0] - stride, 0))
    return _Convolution.apply(padded, conv.weight, conv.bias, stride)  # type: ignore[no-any-return, no-untyped-call]


def _transposed(x: Tensor, conv: Any) -> Tensor:
    """A transposed convolution whose kernel is two strides long, cut to whole strides."""
    stride, (inner, out, _) = conv.stride[0], conv.weight.shape
    rows, time, _ = x.shape
    halves = (x.reshape(-1, inner) @ conv.weight.permute(0, 2, 1).reshape(inner, -1)).view(rows, time, 2, stride * out)
    return (halves[:, :, 0] + F.pad(halves[:, :-1, 1], (0, 0, 1, 0))).reshape(rows, time * stride, out) + conv.bias  # type: ignore[no-any-return]


def seanet(module: Any, x: Tensor) -> Tensor:
    """Upstream's convolutional encoder or decoder on `[B, T, C]`."""
    for layer in module.layers:
        x = _layer(layer, x)
    return x


def _layer(layer: Any, x: Tensor) -> Tensor:
    if isinstance(layer, nn.ELU):
        return F.elu(x)
    if hasattr(layer, "block"):
        inner = x
        for part in layer.block:
            inner = _layer(part, inner)
        return x + inner
    return _transposed(x, layer.conv) if isinstance(layer.conv, nn.ConvTranspose1d) else _conv(x, layer.conv)


def nearest(points: Tensor, codebook: Tensor) -> Tensor:
    """Index of the entry that is nearest to each point."""
    return (points @ codebook.T - codebook.square().sum(1) / 2).argmax(1)


def _kmeans(points: Tensor, rounds: int, start: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Entries, how many points each has, and which entry each point has."""
    centres = points[torch.randperm(len(points))[:ENTRIES]].clone() if start is None else start.clone()
    for round_ in range(rounds + 1):
        chosen = torch.cat([nearest(some, centres) for some in torch.split(points, 8192)])
        counts = torch.bincount(chosen, minlength=ENTRIES).float()
        if round_ == rounds:
            break
        sums = torch.zeros_like(centres).index_add_(0, chosen, points)
        centres = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centres)
        unused = counts == 0
        if round_ < rounds - 1 and bool(unused.any()):
            centres[unused] = points[torch.randint(len(points), (int(unused.sum()),))]
    return centres, counts, chosen


def shares() -> tuple[Tensor, Tensor]:
    """Which dimensions the semantic quantiser has, and which the acoustic one."""
    first = (torch.arange(DIM) < SEMANTIC_DIMS).float()
    return first, 1 - first


class Codec(nn.Module):
    """A `MimiModel` in training.

    First its two halves learn apart: the encoder to give `DIM` features of the sound, the decoder to make sound of
    them, quantised. Then `join` gives each quantiser its share of the dimensions and both learn together.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mimi: Any = MimiModel(config()).train()
        self.parts = cast(Any, upstream.parts(self.mimi))
        with torch.no_grad():  # samples are small, and loudness is seen where the activations bend
            self.parts.encoder_seanet.layers[0].conv.weight.mul_(6)
            self.parts.decoder_seanet.layers[-1].conv.weight.mul_(0.1)
        self.into = nn.Parameter(torch.randn(DIM, WIDTH) / WIDTH**0.5)
        self.out = nn.Parameter(torch.randn(WIDTH, DIM) / DIM**0.5)
        self.register_buffer("books", torch.zeros(LEVELS, ENTRIES, DIM))
        self.register_buffer("usage", torch.ones(LEVELS, ENTRIES))
        self.books: Tensor
        self.usage: Tensor

    @property
    def split(self) -> tuple[Any, Any]:
        """Semantic and acoustic quantiser."""
        quantizer: Any = self.parts.quantizer
        return quantizer.semantic_residual_vector_quantizer, quantizer.acoustic_residual_vector_quantizer

    def encode(self, sound: Tensor) -> Tensor:
        """Latents `[B, frames, WIDTH]` of sound `[B, samples]`."""
        hidden = self.parts.encoder_transformer(seanet(self.parts.encoder_seanet, sound[:, :, None]))[0]
        return self.parts.downsample(hidden.mT).mT  # type: ignore[no-any-return]

    def decode(self, latents: Tensor) -> Tensor:
        """Sound `[B, samples]` of latents."""
        hidden = self.parts.decoder_transformer(self.parts.upsample(latents.mT).mT)[0]
        return seanet(self.parts.decoder_seanet, hidden)[:, :, 0]

    def halves(self) -> tuple[list[Tensor], list[Tensor]]:
        """The weights of the encoder with the way into the quantisers, and those of the decoder."""
        encoding = ("encoder", "downsample", "into", "input_proj")
        groups: tuple[list[Tensor], list[Tensor]] = [], []
        for name, weight in self.named_parameters():
            words = set(name.removeprefix("mimi.").split("."))
            groups[not (words.intersection(encoding) or any("encoder" in word for word in words))].append(weight)
        return groups

    @torch.no_grad()
    def fit(self, points: list[Tensor], rounds: int, keep: bool) -> list[str]:
        """Fit the codebooks level by level to what both quantisers see, `[frames, DIM]` each.

        With `keep` they start from what they are.
        """
        lines, residuals = [], list(points)
        for level in range(LEVELS):
            side = min(level, 1)
            centres, counts, chosen = _kmeans(residuals[side], rounds, self.books[level] if keep else None)
            self.books[level], self.usage[level] = centres, counts / counts.mean() * 3 + 0.5
            residuals[side] = residuals[side] - centres[chosen]
            left = float(residuals[side].square().mean())
            lines.append(f"codebook {level}: mean square left {left:.4f}, {int((counts == 0).sum())} entries unused")
        return lines

    @torch.no_grad()
    def join(self) -> None:
        """Let the quantisers read and write the dimensions that each has had so far."""
        for quantizer, mine in zip(self.split, shares(), strict=True):
            quantizer.input_proj.weight.copy_((self.into * mine[:, None])[:, :, None])
            quantizer.output_proj.weight.copy_(self.out[:, :, None])

    def points(self, latents: Tensor) -> list[Tensor]:
        """What both quantisers see of latents `[…, WIDTH]`."""
        return [latents @ quantizer.input_proj.weight[:, :, 0].T for quantizer in self.split]

    def sound_of(self, features: Tensor, rng: np.random.Generator) -> Tensor:
        """Sound of features `[B, frames, DIM]` that are quantised first."""
        rows, time, _ = features.shape
        both = [(features.detach() * mine).flatten(0, 1) for mine in shares()]
        semantic, acoustic, _ = self._search(both, self._levels(rows, time, 0.4, rng), update=False)
        return self.decode((semantic + acoustic).view(rows, time, DIM) @ self.out.T)

    def quantise(self, points: list[Tensor], rng: np.random.Generator, update: bool) -> tuple[Tensor, Tensor]:
        """Latents `[B, frames, WIDTH]` after the quantisers, some clips with fewer codebooks, and the commitment.

        Gradients pass as if nothing were quantised.
        """
        rows, time, _ = points[0].shape
        semantic, acoustic = (some.flatten(0, 1) for some in points)
        levels = self._levels(rows, time, 0.35, rng)
        first, rest, whole = self._search([semantic.detach(), acoustic.detach()], levels, update)
        commitment = 0.25 * (DIM / SEMANTIC_DIMS) * (semantic - first).square().mean()
        if bool(whole.any()):
            commitment = commitment + (acoustic - rest)[whole].square().mean()
        passed = semantic + (first - semantic).detach(), (acoustic + (rest - acoustic).detach()) * (levels > 1)[:, None]
        wide = [x @ quantizer.output_proj.weight[:, :, 0].T for x, quantizer in zip(passed, self.split, strict=True)]
        return (wide[0] + wide[1]).view(rows, time, WIDTH), commitment

    @staticmethod
    def _levels(rows: int, time: int, fewer: float, rng: np.random.Generator) -> Tensor:
        """How many codebooks each frame has: all in most clips, any number in a share `fewer` of them."""
        counts = [int(rng.integers(1, LEVELS + 1)) if rng.random() < fewer else LEVELS for _ in range(rows)]
        return torch.tensor(counts).repeat_interleave(time)

    @torch.no_grad()
    def _search(self, points: list[Tensor], levels: Tensor, update: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Quantised points of both quantisers, and which frames have all levels."""
        first = self._look_up(0, points[0], update)
        residual, total = points[1], torch.zeros_like(points[1])
        for level in range(1, LEVELS):
            entries = self._look_up(level, residual, update)
            residual = residual - entries
            total = total + entries * (levels > level)[:, None]
        return first, total, levels == LEVELS

    @torch.no_grad()
    def _look_up(self, level: int, points: Tensor, update: bool) -> Tensor:
        """The nearest entries; with `update` the codebook then moves to the points, and dead entries begin anew."""
        book, usage = self.books[level], self.usage[level]
        chosen = nearest(points, book)
        entries = book[chosen]
        if update:
            counts = torch.zeros(ENTRIES).index_add_(0, chosen, torch.ones(len(chosen)))
            sums = torch.zeros_like(book).index_add_(0, chosen, points)
            running = book * usage[:, None] * DECAY + sums * (1 - DECAY) * GAIN
            usage.mul_(DECAY).add_(counts, alpha=(1 - DECAY) * GAIN)
            book.copy_(running / usage.clamp(min=1e-5)[:, None])
            dead = (usage < DEAD).nonzero()[:4, 0]
            book[dead], usage[dead] = points[torch.randint(len(points), (len(dead),))], 0.5
        return entries

    @torch.no_grad()
    def take(self, model: MimiModel) -> None:
        """Begin with the weights and the codebooks of a model of this geometry."""
        self.mimi.load_state_dict(model.state_dict())
        for level, layer in enumerate(layer for quantizer in self.split for layer in quantizer.layers):
            self.books[level] = layer.codebook.embed
        self.usage.fill_(1)

    def finished(self) -> MimiModel:
        """The model with its codebooks in place."""
        layers = [layer for quantizer in self.split for layer in quantizer.layers]
        for layer, book in zip(layers, self.books, strict=True):
            layer.codebook.embed_sum.copy_(book)
            layer.codebook.cluster_usage.fill_(1)
            layer.codebook.initialized.fill_(1)
        return self.mimi
