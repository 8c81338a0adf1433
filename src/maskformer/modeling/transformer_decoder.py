"""The transformer module: learned queries look at the lowest map and become per-segment embeddings
(paper section 3.3, "Transformer module"; the decoder is DETR's, arXiv 2005.12872).

Shape letters: B batch, Q queries, S cells of the lowest map, D width, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from maskformer.kernels.dense import Conv2d
from maskformer.modeling.attention import MultiHeadAttention, TransformerLayer
from maskformer.modeling.position import sine_position_encoding
from maskformer.modeling.recomputation import Recomputing


class TransformerDecoderOutput(NamedTuple):
    """The L + 1 states [B, Q, D] from the zero input on, of which only the last is normalised (as transformers reports
    them), and, when asked for, the attention weights of each layer."""

    hidden_states: tuple[Tensor, ...]
    attentions: tuple[Tensor, ...]
    cross_attentions: tuple[Tensor, ...]


class DecoderLayer(TransformerLayer):
    """Self-attention among the queries, cross-attention to the image, feed-forward block."""

    def __init__(self, width: int, num_heads: int, hidden: int, dropouts: tuple[float, float, float], act: nn.Module):
        super().__init__(width, num_heads, hidden, dropouts, act)
        self.encoder_attn = MultiHeadAttention(width, num_heads, dropouts[1])
        self.encoder_attn_layer_norm = nn.LayerNorm(width)

    def forward(self, states: Tensor, queries: Tensor, image: Tensor, located_image: Tensor) -> Tensor:
        states = self.attend(states, queries)
        looked = self.encoder_attn(states + queries, located_image, image)
        states = self.encoder_attn_layer_norm(states + self.drop(looked))
        return self.feed_forward(states)

    def attention_weights(self, states: Tensor, queries: Tensor, located_image: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of both attentions, [B, heads, Q, Q] and [B, heads, Q, S], for the same input."""
        located = states + queries
        own = self.self_attn.weights(located, located)
        return own, self.encoder_attn.weights(self.attend(states, queries) + queries, located_image)


class TransformerDecoder(Recomputing):
    """The stack of layers and the norm they share.

    Source: arXiv 2107.06278, section 3.3 (transformer module); arXiv 2005.12872, section 3.2.

    Raises:
        Nothing: the model checks its input, and the configuration the widths, before.

    Examples:
        >>> layer = DecoderLayer(32, num_heads=4, hidden=64, dropouts=(0.0, 0.0, 0.0), act=nn.ReLU())
        >>> decoder = TransformerDecoder([layer], 32)
        >>> image = torch.zeros(1, 24, 32)  # [B, cells, D]
        >>> len(decoder(torch.zeros(1, 10, 32), image, image).hidden_states)  # before the first layer, and after each
        2
    """

    def __init__(self, layers: Sequence[DecoderLayer], width: int):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.layernorm = nn.LayerNorm(width)

    def forward(
        self, queries: Tensor, image: Tensor, positions: Tensor, output_attentions: bool = False
    ) -> TransformerDecoderOutput:
        located_image = image + positions
        # The queries start as zeros: what tells them apart are their positions, the learned embeddings.
        states = [queries.new_zeros(queries.shape)]
        weights: list[tuple[Tensor, Tensor]] = []
        for layer in self.layers:
            if output_attentions:
                assert isinstance(layer, DecoderLayer)
                weights.append(layer.attention_weights(states[-1], queries, located_image))
            states.append(self.run(layer, states[-1], queries, image, located_image))
        states[-1] = self.layernorm(states[-1])
        own, cross = tuple(own for own, _ in weights), tuple(cross for _, cross in weights)
        return TransformerDecoderOutput(tuple(states), own, cross)


class TransformerModule(nn.Module):
    """Queries, input projection (where widths differ, or where it is enforced) and the decoder.

    Source: arXiv 2107.06278, section 3.3 (transformer module).

    Raises:
        Nothing: the model checks its input, and the configuration the widths, before.

    Examples:
        >>> layer = DecoderLayer(32, num_heads=4, hidden=64, dropouts=(0.0, 0.0, 0.0), act=nn.ReLU())
        >>> module = TransformerModule(64, 32, num_queries=10, decoder=TransformerDecoder([layer], 32), project=True)
        >>> tuple(module(torch.zeros(1, 64, 4, 6)).hidden_states[-1].shape)  # [B, Q, D]
        (1, 10, 32)
    """

    def __init__(self, in_width: int, width: int, num_queries: int, decoder: TransformerDecoder, project: bool):
        super().__init__()
        self.queries_embedder = nn.Embedding(num_queries, width)
        self.input_projection = Conv2d(in_width, width, 1) if project or in_width != width else None
        self.decoder = decoder

    def forward(self, features: Tensor, output_attentions: bool = False) -> TransformerDecoderOutput:
        if self.input_projection is not None:
            features = self.input_projection(features)
        positions = sine_position_encoding(features)
        image = features.flatten(2).transpose(1, 2)  # [B, S, D]
        queries = self.queries_embedder.weight.expand(features.shape[0], -1, -1)  # [B, Q, D]
        return self.decoder(queries, image, positions, output_attentions)
