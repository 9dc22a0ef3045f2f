"""One pre-norm transformer layer with layer scales, as Mimi has them between the SEANet halves and the quantiser."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

from mimi_export.contract.geometry import Geometry
from mimi_export.model.steps.attention import Attention, CacheStep
from mimi_export.model.steps.matmul import product, product_weight

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "relu": functional.relu,
    "silu": functional.silu,
}


class TransformerLayer(nn.Module):
    """`x + scale·attention(norm(x))`, then `x + scale·mlp(norm(x))`; the scales are folded into the products.

    Args:
        geometry: sizes of the model.
        layer: the upstream layer; its weights are read, the module is not used.
    """

    def __init__(self, geometry: Geometry, layer: nn.Module) -> None:
        super().__init__()
        attention = layer.self_attn
        projections = [getattr(attention, name) for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
        weights = [projection.weight for projection in projections]
        biases = [projection.bias for projection in projections]
        scale = layer.self_attn_layer_scale.scale
        weights[3] = weights[3] * scale[:, None]
        biases[3] = None if biases[3] is None else biases[3] * scale
        self.attention = Attention(geometry, weights, biases)
        self.activation = ACTIVATIONS[geometry.hidden_act]
        self.fc1 = product_weight(layer.mlp.fc1.weight)
        self.fc2 = product_weight(layer.mlp.fc2.weight * layer.mlp_layer_scale.scale[:, None])
        self.norm1 = _copy_norm(layer.input_layernorm)
        self.norm2 = _copy_norm(layer.post_attention_layernorm)

    def forward(
        self, x: Tensor, past_key: Tensor, past_value: Tensor, cache: CacheStep
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Map `[T, B, hidden]` to the same shape; keys and values as in `Attention`."""
        attended, key, value = self.attention(self.norm1(x), past_key, past_value, cache)
        x = x + attended
        return x + product(self.activation(product(self.norm2(x), self.fc1)), self.fc2), key, value


def _copy_norm(norm: nn.Module) -> nn.LayerNorm:
    copy = nn.LayerNorm(norm.weight.shape[0], eps=norm.eps).requires_grad_(False)
    copy.load_state_dict(norm.state_dict())
    return copy
