"""Multi-head attention and the feed-forward block shared by the two transformers (DETR, arXiv 2005.12872).

Positions are added to queries and keys in every layer, never to values; norms come after the residual sums.

Shape letters: B batch, T query tokens, S key tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskformer.kernels.dense import Linear

Checkpointer = Callable[..., Tensor]


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


class FeedForward(nn.Module):
    """Base of a layer that ends in two linear maps: registers them as `fc1`, `fc2` with the layer's own dropout."""

    # Set by PreTrainedModel when gradient checkpointing is turned on.
    gradient_checkpointing = False
    _gradient_checkpointing_func: Checkpointer | None = None

    def __init__(self, width: int, hidden: int, dropout: float, activation_dropout: float, activation: nn.Module):
        super().__init__()
        self.dropout = dropout
        self.activation_dropout = activation_dropout
        self.activation = activation
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def feed_forward(self, tokens: Tensor) -> Tensor:
        hidden = F.dropout(self.activation(self.fc1(tokens)), self.activation_dropout, self.training)
        return self.final_layer_norm(tokens + self.drop(self.fc2(hidden)))

    def drop(self, tokens: Tensor) -> Tensor:
        return F.dropout(tokens, self.dropout, self.training)

    def checkpointed(self, *tensors: Tensor) -> Tensor:
        """The layer itself, recomputed in the backward pass when gradient checkpointing is on."""
        if self.gradient_checkpointing and self.training and self._gradient_checkpointing_func is not None:
            return self._gradient_checkpointing_func(self.__call__, *tensors)
        return cast(Tensor, self(*tensors))
