"""MaskFormer (paper figure 2): backbone and pixel decoder make per-pixel embeddings, the transformer module makes
per-segment embeddings, their product makes masks.

Shape letters: B batch, Q queries, C classes, N targets, D decoder width, E mask embedding, H W image, h w stride-4 map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, cast

import torch
import transformers.initialization as init
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from maskformer.configuration import MaskFormerConfig
from maskformer.kernels.dense import Linear
from maskformer.kernels.packed_masks import PackedMasks
from maskformer.losses import LossNormalizer, MaskFormerHungarianMatcher, MaskFormerLoss
from maskformer.modeling import published_layout
from maskformer.modeling.attention import TransformerLayer
from maskformer.modeling.backbones import build_backbone
from maskformer.modeling.backbones.contract import check_pixel_values
from maskformer.modeling.heads import MaskEmbedder, predict_masks
from maskformer.modeling.initialization import assign_rules, initialize
from maskformer.modeling.outputs import MaskFormerForInstanceSegmentationOutput, MaskFormerModelOutput
from maskformer.modeling.pixel_decoder import EncoderLayer, PixelDecoder, PixelDecoderOutput, PixelEncoder
from maskformer.modeling.transformer_decoder import DecoderLayer, TransformerDecoder, TransformerModule

Layer = TypeVar("Layer", bound=TransformerLayer)


class MaskFormerPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialising, shared by every network of the package."""

    config_class = MaskFormerConfig
    config: MaskFormerConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["SwinBlock", "ResNetBlock", "DecoderLayer", "EncoderLayer"]
    _keys_to_ignore_on_load_unexpected = published_layout.IGNORED_ON_READING
    # The loss is normalised by the number of masks, not by the batch: transformers' Trainer must not rescale it.
    accepts_loss_kwargs = False

    def __init__(self, config: Any, *inputs: Any, **kwargs: Any):
        if getattr(config, "model_type", "") == "maskformer" and not isinstance(config, MaskFormerConfig):
            config = MaskFormerConfig.from_dict(config.to_dict())  # of transformers' class, as AutoConfig makes it
        super().__init__(config, *inputs, **kwargs)

    def post_init(self) -> None:
        assign_rules(self)
        self.register_load_state_dict_pre_hook(published_layout.translate)
        super().post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        initialize(module, init, self.config.init_std, self.config.init_xavier_std)

    def save_pretrained(
        self, save_directory: Any, is_main_process: bool = True, state_dict: Any = None, *args: Any, **kwargs: Any
    ):
        """As in transformers; the file also gets the constants that transformers' own class expects to find."""
        state_dict = dict(self.state_dict() if state_dict is None else state_dict)
        state_dict.update(published_layout.constants(self))
        super().save_pretrained(save_directory, is_main_process, state_dict, *args, **kwargs)


class PixelLevelModule(nn.Module):
    """Backbone and pixel decoder (paper section 3.3, "Pixel-level module")."""

    def __init__(self, encoder: nn.Module, decoder: PixelDecoder):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, pixel_values: Tensor) -> tuple[tuple[Tensor, ...], PixelDecoderOutput]:
        """The backbone's four maps, and what the pixel decoder makes of them."""
        feature_maps = tuple(self.encoder(pixel_values).feature_maps)
        return feature_maps, self.decoder(feature_maps)


def build_pixel_level_module(config: MaskFormerConfig) -> PixelLevelModule:
    """The pixel-level module that `config` describes."""
    backbone = build_backbone(config.backbone_config, norm=config.backbone_norm, stem=config.backbone_stem)
    decoder, width = config.decoder_config, config.fpn_feature_size
    encoder = None
    if config.pixel_decoder_encoder_layers > 0:
        sizes = width, decoder.encoder_attention_heads, decoder.encoder_ffn_dim
        encoder = PixelEncoder(_layers(EncoderLayer, config.pixel_decoder_encoder_layers, sizes, decoder))
    channels = cast(Sequence[int], backbone.channels)
    return PixelLevelModule(backbone, PixelDecoder(channels, width, config.mask_feature_size, encoder))


def build_transformer_module(config: MaskFormerConfig, in_width: int) -> TransformerModule:
    """The transformer module that `config` describes, reading a map of `in_width` channels."""
    decoder, width = config.decoder_config, config.decoder_config.d_model
    sizes = width, decoder.decoder_attention_heads, decoder.decoder_ffn_dim
    stack = TransformerDecoder(_layers(DecoderLayer, decoder.decoder_layers, sizes, decoder), width)
    return TransformerModule(in_width, width, decoder.num_queries, stack, config.enforce_input_projection)


def _layers(layer: type[Layer], count: int, sizes: tuple[int, int, int], decoder_config: Any) -> list[Layer]:
    dropouts = decoder_config.dropout, decoder_config.attention_dropout, decoder_config.activation_dropout
    return [layer(*sizes, dropouts, ACT2FN[decoder_config.activation_function]) for _ in range(count)]


class MaskFormerModel(MaskFormerPreTrainedModel):
    """The network without its prediction heads (paper figure 2, left and middle).

    Source: arXiv 2107.06278, section 3.3.

    Examples:
        >>> model = MaskFormerModel(MaskFormerConfig.from_zoo("r50-ade20k-150")).eval()
        >>> with torch.no_grad():
        ...     output = model(torch.zeros(1, 3, 64, 96))
        >>> tuple(output.pixel_decoder_last_hidden_state.shape)  # [B, E, h, w]
        (1, 256, 16, 24)
        >>> tuple(output.transformer_decoder_last_hidden_state.shape)  # [B, Q, D]
        (1, 100, 256)
    """

    def __init__(self, config: MaskFormerConfig):
        super().__init__(config)
        config = self.config
        self.pixel_level_module = build_pixel_level_module(config)
        self.transformer_module = build_transformer_module(config, self.pixel_level_module.decoder.transformer_width)
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As in transformers, also out of the checkpoint of a whole model."""
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, report = loaded
        if any(".mlp.fc1." in key for key in report["unexpected_keys"]):
            # transformers 5.10 renames these on reading and then does not find them under the whole model's prefix.
            loaded = MaskFormerForInstanceSegmentation.from_pretrained(*args, output_loading_info=True, **kwargs)
            model, report = loaded[0].model, loaded[1]
        return (model, report) if output_loading_info else model

    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> MaskFormerModelOutput | tuple[Any, ...]:
        """Hidden states of the pixel and the transformer side.

        Args:
            pixel_values: normalised images [B, 3, H, W], any H and W of at least one pixel.
            pixel_mask: [B, H, W], 1 = image, 0 = padding. It does not enter the network: neither the authors nor
                transformers mask the attention. Hand it to the post-processors, which crop the padding.
            output_hidden_states: also return the maps and states in between.
            output_attentions: also return the decoder's attention weights.
            return_dict: False gives a plain tuple of the fields that are not None.
            **kwargs: ignored; transformers' callers hand over more than this model needs.

        Raises:
            ValueError: `pixel_values` is missing or not of shape [B, channels, H, W].
        """
        check_pixel_values(pixel_values, getattr(self.config.backbone_config, "num_channels", 3))
        output_attentions = _wanted(output_attentions, self.config.output_attentions)
        maps, pixels = self.pixel_level_module(pixel_values)
        decoded = self.transformer_module(pixels.transformer_features, output_attentions)
        output = MaskFormerModelOutput(
            encoder_last_hidden_state=maps[-1],
            pixel_decoder_last_hidden_state=pixels.pixel_embeddings,
            transformer_decoder_last_hidden_state=decoded.hidden_states[-1],
        )
        if _wanted(output_hidden_states, self.config.output_hidden_states):
            output.encoder_hidden_states = maps
            output.pixel_decoder_hidden_states = pixels.hidden_states
            output.transformer_decoder_hidden_states = decoded.hidden_states
            output.hidden_states = maps + pixels.hidden_states + decoded.hidden_states
        if output_attentions:
            output.attentions = decoded.attentions
            output.cross_attentions = decoded.cross_attentions
        return output if _wanted(return_dict, self.config.return_dict) else output.to_tuple()

    def normalised_states(self, output: MaskFormerModelOutput) -> list[Tensor]:
        """What each decoder layer says [B, Q, D], after the final norm, of an output with hidden states."""
        states = cast(tuple[Tensor, ...], output.transformer_decoder_hidden_states)
        return [*map(self.transformer_module.decoder.layernorm, states[1:-1]), states[-1]]


class MaskFormerForInstanceSegmentation(MaskFormerPreTrainedModel):
    """MaskFormer with its heads and its loss: semantic, instance and panoptic segmentation by the same weights.

    Source: arXiv 2107.06278, sections 3.2 and 3.3.

    Examples:
        >>> config = MaskFormerConfig.from_zoo("r50-ade20k-150")
        >>> model = MaskFormerForInstanceSegmentation(config)
        >>> masks, labels = torch.zeros(1, 64, 96, dtype=torch.bool), torch.tensor([7])
        >>> masks[:, 10:40, 20:60] = True
        >>> output = model(torch.zeros(1, 3, 64, 96), mask_labels=[masks], class_labels=[labels])
        >>> tuple(output.class_queries_logits.shape), tuple(output.masks_queries_logits.shape), output.loss.ndim
        ((1, 100, 151), (1, 100, 16, 24), 0)
    """

    def __init__(self, config: MaskFormerConfig):
        super().__init__(config)
        config = self.config
        width, num_labels = config.decoder_config.d_model, cast(int, config.num_labels)
        self.model = MaskFormerModel(config)
        self.class_predictor = Linear(width, num_labels + 1)
        self.mask_embedder = MaskEmbedder(width, config.mask_feature_size)
        self.matcher = MaskFormerHungarianMatcher(
            cost_class=config.class_cost, cost_mask=config.mask_weight, cost_dice=config.dice_weight
        )
        self.weight_dict = {
            "loss_cross_entropy": config.cross_entropy_weight,
            "loss_mask": config.mask_weight,
            "loss_dice": config.dice_weight,
        }
        self.criterion = MaskFormerLoss(
            num_labels,
            matcher=self.matcher,
            weight_dict=self.weight_dict,
            eos_coef=config.no_object_weight,
            class_weights=config.class_weights,
        )
        self.post_init()

    def get_loss_dict(
        self,
        masks_queries_logits: Tensor,
        class_queries_logits: Tensor,
        mask_labels: Sequence[Tensor | PackedMasks],
        class_labels: list[Tensor],
        auxiliary_logits: list[dict[str, Tensor]] | None = None,
        **extra: Any,
    ) -> dict[str, Tensor]:
        """The terms of `criterion`, each multiplied by its weight. `extra`: its `normalizer` and `valid_mask`."""
        labels = mask_labels, class_labels
        terms = self.criterion(masks_queries_logits, class_queries_logits, *labels, auxiliary_logits, **extra)
        return {name: term * self._weight(name) for name, term in terms.items()}

    def _weight(self, term: str) -> float:
        return next((weight for name, weight in self.weight_dict.items() if term.startswith(name)), 1.0)

    def get_loss(self, loss_dict: dict[str, Tensor]) -> Tensor:
        """The sum of the terms of `get_loss_dict`."""
        return torch.stack(list(loss_dict.values())).sum()

    def get_logits(self, states: Tensor, pixel_embeddings: Tensor) -> dict[str, Tensor]:
        """Both logits from per-segment embeddings [B, Q, D] and per-pixel embeddings [B, E, h, w]."""
        return {
            "masks_queries_logits": predict_masks(self.mask_embedder(states), pixel_embeddings),
            "class_queries_logits": self.class_predictor(states),
        }

    def forward(
        self,
        pixel_values: Tensor,
        mask_labels: Sequence[Tensor | PackedMasks] | None = None,
        class_labels: list[Tensor] | None = None,
        pixel_mask: Tensor | None = None,
        output_auxiliary_logits: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        normalizer: LossNormalizer | None = None,
        valid_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> MaskFormerForInstanceSegmentationOutput | tuple[Any, ...]:
        """Class and mask logits per query and, with labels, the loss.

        Args:
            pixel_values: normalised images [B, 3, H, W].
            mask_labels: per image [N, H, W] in {0, 1}, as a tensor or packed; N may be 0.
            class_labels: per image [N], 0 to C - 1.
            pixel_mask: [B, H, W], 1 = image, 0 = padding; it does not enter the network (see `MaskFormerModel`).
            output_auxiliary_logits: also return the predictions of the decoder layers before the last; they exist
                with deep supervision only.
            output_hidden_states: also return the maps and states in between.
            output_attentions: also return the decoder's attention weights.
            return_dict: False gives a plain tuple of the fields that are not None.
            normalizer: what the loss is divided by; None = computed from these labels, over all processes.
            valid_mask: [B, H, W], pixels that are False count neither in the matching nor in the mask losses.
            **kwargs: ignored; transformers' callers hand over more than this model needs.

        Raises:
            ValueError: images or labels of the wrong shape, type or range; one kind of labels without the other.
            FloatingPointError: a prediction is not finite while the loss is asked for.
        """
        if (mask_labels is None) != (class_labels is None):
            missing = "mask_labels" if mask_labels is None else "class_labels"
            raise ValueError(
                f"{missing} is missing: the loss needs both mask_labels and class_labels; pass both or none"
            )
        show_states = _wanted(output_hidden_states, self.config.output_hidden_states)
        deep = self.config.use_auxiliary_loss
        show_auxiliary = deep and _wanted(output_auxiliary_logits, self.config.output_auxiliary_logits)
        hidden = self.model(
            pixel_values,
            output_hidden_states=show_states or deep,
            output_attentions=output_attentions,
            return_dict=True,
        )
        pixel_embeddings = hidden.pixel_decoder_last_hidden_state
        logits = self.get_logits(hidden.transformer_decoder_last_hidden_state, pixel_embeddings)
        auxiliary: list[dict[str, Tensor]] = []
        if show_auxiliary or (deep and mask_labels is not None):
            states = self.model.normalised_states(hidden)[:-1]
            auxiliary = [self.get_logits(state, pixel_embeddings) for state in states]
        loss = None
        if mask_labels is not None and class_labels is not None:
            # only what is given: an own criterion or `get_loss_dict`, written for transformers, knows neither
            extra: dict[str, Any] = {"normalizer": normalizer, "valid_mask": valid_mask}
            extra = {name: value for name, value in extra.items() if value is not None}
            targets: Any = {"mask_labels": mask_labels, "class_labels": class_labels, "auxiliary_logits": auxiliary}
            loss = self.get_loss(self.get_loss_dict(**logits, **targets, **extra))
        # deep supervision needs the states in between, whether they are asked for or not
        shown = {name: value for name, value in hidden.items() if show_states or not name.endswith("hidden_states")}
        auxiliary_logits = auxiliary if show_auxiliary else None
        output = MaskFormerForInstanceSegmentationOutput(
            loss=loss, **logits, auxiliary_logits=auxiliary_logits, **shown
        )
        return output if _wanted(return_dict, self.config.return_dict) else output.to_tuple()


def _wanted(asked: bool | None, default: Any) -> bool:
    return bool(default if asked is None else asked)
