"""What the models return: the fields of transformers' output classes, in their order.

Shape letters: B batch, Q queries, C classes, D decoder width, E mask embedding, H W image, h w stride-4 map.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput  # pyright: ignore[reportPrivateImportUsage]


@dataclass
class MaskFormerModelOutput(ModelOutput):
    """Hidden states of `MaskFormerModel`.

    Source: arXiv 2107.06278, section 3.3.

    Attributes:
        encoder_last_hidden_state: last backbone map [B, C5, H/32, W/32].
        pixel_decoder_last_hidden_state: per-pixel embeddings [B, E, h, w].
        transformer_decoder_last_hidden_state: per-segment embeddings [B, Q, D], after the final norm.
        encoder_hidden_states: the four backbone maps, strides 4, 8, 16, 32; with `output_hidden_states`, as the next.
        pixel_decoder_hidden_states: the three maps of the top-down path, strides 16, 8, 4.
        transformer_decoder_hidden_states: the zero input and the output of each layer [B, Q, D]; only the last is
            normalised, as in transformers.
        hidden_states: the three tuples above in one.
        attentions: decoder self-attention per layer [B, heads, Q, Q]; with `output_attentions`, as the next.
        cross_attentions: decoder cross-attention per layer [B, heads, Q, H/32 * W/32].

    Raises:
        Nothing: it holds what it is given.

    Examples:
        >>> output = MaskFormerModelOutput(pixel_decoder_last_hidden_state=torch.zeros(1, 256, 16, 24))
        >>> list(output.keys())  # what is None is left out, also of the tuple
        ['pixel_decoder_last_hidden_state']
    """

    encoder_last_hidden_state: Tensor | None = None
    pixel_decoder_last_hidden_state: Tensor | None = None
    transformer_decoder_last_hidden_state: Tensor | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    pixel_decoder_hidden_states: tuple[Tensor, ...] | None = None
    transformer_decoder_hidden_states: tuple[Tensor, ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None


@dataclass
class _Predictions(ModelOutput):
    loss: Tensor | None = None
    class_queries_logits: Tensor | None = None
    masks_queries_logits: Tensor | None = None
    auxiliary_logits: list[dict[str, Tensor]] | None = None


# The fields of the last base come first.
@dataclass
class MaskFormerForInstanceSegmentationOutput(MaskFormerModelOutput, _Predictions):
    """Predictions of `MaskFormerForInstanceSegmentation`; the post-processors take it as it is.

    Source: arXiv 2107.06278, section 3.3.

    Attributes:
        loss: weighted sum over all terms and heads, with labels.
        class_queries_logits: [B, Q, C + 1] before the softmax; the last class is "no object".
        masks_queries_logits: [B, Q, h, w] before the sigmoid, stride 4.
        auxiliary_logits: one dict with the two logits per decoder layer but the last, with
            `output_auxiliary_logits` and deep supervision.

    The other fields are those of `MaskFormerModelOutput`.

    Raises:
        Nothing: it holds what it is given.

    Examples:
        >>> output = MaskFormerForInstanceSegmentationOutput(
        ...     class_queries_logits=torch.zeros(1, 100, 151), masks_queries_logits=torch.zeros(1, 100, 16, 24)
        ... )
        >>> output.loss is None, tuple(output["masks_queries_logits"].shape)
        (True, (1, 100, 16, 24))
    """


@dataclass
class PerPixelOutput(ModelOutput):
    """Predictions of the per-pixel baselines.

    Attributes:
        loss: mean cross entropy over the labelled pixels (summed over the decoder layers for baseline+), with labels.
        logits: [B, C, h, w] before the softmax, stride 4.
        auxiliary_logits: baseline+ only: the logits of each decoder layer but the last.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    auxiliary_logits: list[Tensor] | None = None
