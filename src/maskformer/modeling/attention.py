"""Multi-head attention and what the layers of the two transformers share (DETR, arXiv 2005.12872).

Positions are added to queries and keys in every layer, never to values; norms come after the residual sums.

Shape letters: B batch, T query tokens, S key tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskformer.kernels.dense import Linear


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention with separate projections [B, T, D] x [B, S, D] -> [B, T, D].

    Raises:
        ValueError: the width is not divisible by the number of heads.
    """

    def __init__(self, width: int, num_heads: int, dropout: float = 0.0):
        super().__init__()
        if width % num_heads:
            raise ValueError(
                f"the transformer's width is {width} with {num_heads} attention heads: expected a width that the "
                "number of heads divides; change d_model or the number of attention heads"
            )
        self.num_heads = num_heads
        self.dropout = dropout
        self.q_proj = Linear(width, width)
        self.k_proj = Linear(width, width)
        self.v_proj = Linear(width, width)
        self.out_proj = Linear(width, width)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = self._heads(self.q_proj(query)), self._heads(self.k_proj(key)), self._heads(self.v_proj(value))
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))  # [B, T, D]

    def weights(self, query: Tensor, key: Tensor) -> Tensor:
        """The attention weights [B, heads, T, S], which the fused product does not give."""
        q, k = self._heads(self.q_proj(query)), self._heads(self.k_proj(key))
        return torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1)

    def _heads(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [B, heads, T, D / heads]


class TransformerLayer(nn.Module):
    """Base of a layer: self-attention and, to end with, two linear maps, each with a residual sum and then a norm.

    `dropouts` are those of the sums, of the attention weights and of the hidden values between the linear maps.
    """

    def __init__(self, width: int, num_heads: int, hidden: int, dropouts: tuple[float, float, float], act: nn.Module):
        super().__init__()
        self.dropout, attention_dropout, self.activation_dropout = dropouts
        self.activation = act
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)
        self.final_layer_norm = nn.LayerNorm(width)
        self.self_attn = MultiHeadAttention(width, num_heads, attention_dropout)
        self.self_attn_layer_norm = nn.LayerNorm(width)

    def attend(self, tokens: Tensor, positions: Tensor) -> Tensor:
        located = tokens + positions
        return self.self_attn_layer_norm(tokens + self.drop(self.self_attn(located, located, tokens)))

    def feed_forward(self, tokens: Tensor) -> Tensor:
        hidden = F.dropout(self.activation(self.fc1(tokens)), self.activation_dropout, self.training)
        return self.final_layer_norm(tokens + self.drop(self.fc2(hidden)))

    def drop(self, tokens: Tensor) -> Tensor:
        return F.dropout(tokens, self.dropout, self.training)
