"""The paper's per-pixel baselines: the same backbone and pixel decoder, trained to classify pixels
(paper section 4.1, "Baselines", and appendix).

Shape letters: B batch, C classes, Q queries (= C for baseline+), E mask embedding, H W image, h w stride-4 map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskformer.configuration import PerPixelBaselineConfig
from maskformer.modeling.heads import MaskEmbedder, predict_masks
from maskformer.modeling.maskformer import MaskFormerModel, MaskFormerPreTrainedModel, build_pixel_level_module
from maskformer.modeling.outputs import MaskFormerModelOutput, PerPixelOutput


def ignored_label(num_classes: int) -> int:
    """The label of pixels that count nowhere: 255, or 65535 where 255 is a class, as in the authors' ADE20K-Full."""
    return 255 if num_classes <= 255 else 65535


def labelled_weight(labels: Tensor, num_classes: int, class_weights: Sequence[float] | None = None) -> Tensor:
    """The labelled pixels, each counted with its class's weight: what the loss is divided by."""
    labelled = labels != ignored_label(num_classes)
    if class_weights is None:
        return labelled.sum()
    return torch.tensor(class_weights, device=labels.device)[labels[labelled]].sum()


def per_pixel_loss(logits: Tensor, labels: Tensor, class_weights: Sequence[float] | None = None) -> Tensor:
    """Mean cross entropy of logits [B, C, h, w], enlarged to labels [B, H, W], over the pixels that are labelled.

    With class weights it is a weighted mean. A batch without any labelled pixel gives 0, connected to the graph.

    Raises:
        ValueError: labels of another batch size, or outside 0 to C - 1 and not `ignored_label(C)`.
    """
    if labels.ndim != 3 or labels.shape[0] != logits.shape[0]:
        raise ValueError(
            f"labels has shape {list(labels.shape)}, expected [{logits.shape[0]}, height, width]: "
            "one class id per pixel for each image of the batch"
        )
    labels, ignored = labels.long(), ignored_label(logits.shape[1])
    wrong = (labels != ignored) & ((labels < 0) | (labels >= logits.shape[1]))
    if bool(wrong.any()):
        raise ValueError(
            f"labels holds {int(labels[wrong][0])}, expected 0 to {logits.shape[1] - 1} or {ignored} (ignored): "
            "check the label map and the number of classes"
        )
    enlarged = F.interpolate(logits.float(), size=labels.shape[-2:], mode="bilinear", align_corners=False)
    weights = None if class_weights is None else enlarged.new_tensor(class_weights)
    total = F.cross_entropy(enlarged, labels, weights, ignore_index=ignored, reduction="sum")
    weight = labelled_weight(labels, logits.shape[1], class_weights)
    return total / (weight + (weight == 0))


class PerPixelBaseline(MaskFormerPreTrainedModel):
    """Pixel decoder and a 1x1 convolution (the paper's PerPixelBaseline).

    Source: arXiv 2107.06278, sections 3.1 and 4.1 (baselines).

    Examples:
        >>> from maskformer import MaskFormerConfig
        >>> model = PerPixelBaseline(MaskFormerConfig.from_zoo("per-pixel-baseline-r50-ade20k-150")).eval()
        >>> with torch.no_grad():
        ...     tuple(model(torch.zeros(1, 3, 64, 96)).logits.shape)  # [B, C, h, w]
        (1, 150, 16, 24)
    """

    config_class = PerPixelBaselineConfig

    def __init__(self, config: PerPixelBaselineConfig):
        super().__init__(config)
        self.pixel_level_module = build_pixel_level_module(config)
        self.predictor = nn.Conv2d(config.mask_feature_size, cast(int, config.num_labels), 1)
        self.post_init()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any) -> PerPixelOutput:
        """Class logits per pixel [B, C, h, w] and, with `labels` [B, H, W] (ignored: 255, or 65535
        with more than 255 classes), the loss.

        Raises:
            ValueError: labels of the wrong shape or range.
        """
        _, decoded = self.pixel_level_module(pixel_values)
        logits = self.predictor(decoded.pixel_embeddings)
        loss = None if labels is None else per_pixel_loss(logits, labels, self.config.class_weights)
        return PerPixelOutput(loss=loss, logits=logits)


class PerPixelBaselinePlus(MaskFormerPreTrainedModel):
    """The whole of MaskFormer's network with one query per class and no class head (PerPixelBaseline+).

    Source: arXiv 2107.06278, sections 3.1 and 4.1 (baselines).

    Examples:
        >>> from maskformer import MaskFormerConfig
        >>> model = PerPixelBaselinePlus(MaskFormerConfig.from_zoo("per-pixel-baseline-plus-r50-ade20k-150")).eval()
        >>> with torch.no_grad():
        ...     tuple(model(torch.zeros(1, 3, 64, 96)).logits.shape)  # [B, C, h, w]
        (1, 150, 16, 24)
    """

    config_class = PerPixelBaselineConfig

    def __init__(self, config: PerPixelBaselineConfig):
        super().__init__(config)
        if config.decoder_config.num_queries != config.num_labels:
            raise ValueError(
                f"there are {config.decoder_config.num_queries} queries and {config.num_labels} classes, "
                "expected as many: its queries are the classes; set decoder_config.num_queries"
            )
        self.model = MaskFormerModel(config)
        self.mask_embedder = MaskEmbedder(config.decoder_config.d_model, config.mask_feature_size)
        self.post_init()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any) -> PerPixelOutput:
        """Class logits per pixel [B, C, h, w] and, with `labels` [B, H, W] (ignored: 255, or 65535
        with more than 255 classes), the loss: with deep supervision summed over every decoder layer.

        Raises:
            ValueError: labels of the wrong shape or range.
        """
        hidden = cast(MaskFormerModelOutput, self.model(pixel_values, output_hidden_states=True, return_dict=True))
        states = self.model.normalised_states(hidden)[0 if self.config.use_auxiliary_loss else -1 :]
        pixel_embeddings = cast(Tensor, hidden.pixel_decoder_last_hidden_state)
        *auxiliary, logits = (predict_masks(self.mask_embedder(state), pixel_embeddings) for state in states)
        loss = None
        if labels is not None:
            weights = self.config.class_weights
            loss = torch.stack([per_pixel_loss(each, labels, weights) for each in (*auxiliary, logits)]).sum()
        return PerPixelOutput(loss=loss, logits=logits, auxiliary_logits=auxiliary or None)
