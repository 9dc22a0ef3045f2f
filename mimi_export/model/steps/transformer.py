"""What lies between matmuls: a pre-norm transformer layer with layer scales, and the SEANet's activation."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from mimi_export.contract.geometry import Geometry
from mimi_export.model.steps.attention import Attention
from mimi_export.model.steps.cache import KvCache
from mimi_export.model.steps.matmul import fixed, matmul, matmul_weight


def elu(x: Tensor) -> Tensor:
    """The exponential linear unit of a tensor of any shape: `x` where it is positive, `exp(x) - 1` elsewhere.

    Below zero `exp(x) - 1` is the larger of the two, above zero `x` is larger than `exp(0) - 1`. These four passes take
    0.4 of the time of one `Elu`: onnxruntime vectorises `Exp` for the processor that it finds, `Elu` only for the
    oldest that it supports. The result is nearer to the true one, too.
    """
    return torch.maximum(x, torch.exp(torch.clamp(x, max=0.0)) - 1.0)


class TransformerLayer(nn.Module):
    """`x + scale·attention(norm(x))`, then `x + scale·mlp(norm(x))`; the scales are folded into the matmuls.

    Args:
        geometry: sizes of the model.
        weights: the layer's tensors by their names on disk, `self_attn.q_proj.weight` and so on.
    """

    def __init__(self, geometry: Geometry, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        projections = [weights[f"self_attn.{name}_proj.weight"] for name in "qkvo"]
        biases = [weights[f"self_attn.{name}_proj.bias"] for name in "qkvo"] if geometry.attention_bias else None
        scale = weights["self_attn_layer_scale.scale"]
        projections[3] = projections[3] * scale[:, None]
        if biases is not None:
            biases[3] = biases[3] * scale
        self.attention = Attention(geometry, projections, biases)
        self.activation = getattr(functional, geometry.hidden_act)
        self.fc1 = matmul_weight(weights["mlp.fc1.weight"])
        self.fc2 = matmul_weight(weights["mlp.fc2.weight"] * weights["mlp_layer_scale.scale"][:, None])
        self.norm1 = _norm(weights, "input_layernorm", geometry.norm_eps)
        self.norm2 = _norm(weights, "post_attention_layernorm", geometry.norm_eps)

    def forward(self, x: Tensor, past_key: Tensor, past_value: Tensor, cache: KvCache) -> tuple[Tensor, Tensor, Tensor]:
        """Map `[T, B, hidden]` to the same shape; keys and values as in `Attention`."""
        attended, key, value = self.attention(self.norm1(x), past_key, past_value, cache)
        x = x + attended
        return x + matmul(self.activation(matmul(self.norm2(x), self.fc1)), self.fc2), key, value


def _norm(weights: Mapping[str, Tensor], name: str, eps: float) -> nn.LayerNorm:
    norm = nn.LayerNorm(len(weights[f"{name}.weight"]), eps=eps)
    norm.weight, norm.bias = fixed(weights[f"{name}.weight"]), fixed(weights[f"{name}.bias"])
    return norm
