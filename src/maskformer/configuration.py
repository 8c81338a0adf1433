"""The configuration of MaskFormer: every field transformers documents, and the few this package adds.

`config.json` is interchangeable with transformers in both directions. Fields of ours are left out of the file while
they hold their default; a network that transformers cannot represent is written under a model type of ours, so that
transformers refuses the file instead of filling what it does not know with random weights.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from typing import Any, Literal

from transformers import AutoConfig, PreTrainedConfig

from maskformer.explanations import explained

EXTENDED_MODEL_TYPE = "maskformer-extended"
PER_PIXEL_MODEL_TYPE = "per-pixel-baseline"
_OUR_MODEL_TYPES = (EXTENDED_MODEL_TYPE, PER_PIXEL_MODEL_TYPE)

BACKBONE_STAGES = ["stage1", "stage2", "stage3", "stage4"]

_SWIN_SIZES: dict[str, dict[str, Any]] = {
    "Swin-T": {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7},
    "Swin-S": {"embed_dim": 96, "depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24], "window_size": 7},
    "Swin-B": {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 12},
    "Swin-L": {"embed_dim": 192, "depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48], "window_size": 12},
}
_RESNET_DEPTHS = {"R50": [3, 4, 6, 3], "R101": [3, 4, 23, 3]}

# Fields this package adds, with the value that means what transformers means.
_ADDITIONS: dict[str, Any] = {
    "pixel_decoder_encoder_layers": 0,
    "enforce_input_projection": False,
    "backbone_norm": "batch",
    "backbone_stem": "basic",
    "class_cost": 1.0,
    "class_weights": None,
    "stuff_class_ids": None,
}


class MaskFormerConfig(PreTrainedConfig):
    """Configuration of `MaskFormerModel` and `MaskFormerForInstanceSegmentation` (paper sections 3.2 to 3.4).

    Every argument is also an attribute.

    Source: arXiv 2107.06278, sections 3.2 to 3.4 and 4.1.

    Args:
        fpn_feature_size: channels of the FPN's maps.
        mask_feature_size: length E of the mask embeddings (paper: C_E = 256).
        no_object_weight: weight of the "no object" class in the cross entropy (paper, section 4.1: 0.1).
        use_auxiliary_loss: a loss on every decoder layer. In the file it is called `deep_supervision`, see `to_dict`.
        backbone_config: of Swin, ResNet, or any backbone of transformers with maps at strides 4, 8, 16 and 32; by
            default Swin-B pre-trained at 384 pixels, as in transformers.
        decoder_config: a `DetrConfig`; its `num_queries`, `decoder_layers`, `d_model`, ... are those of the decoder.
        init_std: standard deviation of the normal initialisation.
        init_xavier_std: gain of the Xavier initialisation.
        dice_weight: weight of the dice loss, and of the dice cost in the matching.
        cross_entropy_weight: weight of the cross entropy in the loss.
        mask_weight: weight of the focal loss, and of the focal cost in the matching.
        output_auxiliary_logits: whether `forward` returns the auxiliary predictions when it is not told.
        deep_supervision: the same as `use_auxiliary_loss`.
        pixel_decoder_encoder_layers: transformer encoder layers on the smallest map before the FPN (the authors'
            "+ 6 Enc" models); 0 is a plain FPN.
        enforce_input_projection: project the smallest map even where its width already equals the decoder's.
        backbone_norm: of ResNet only: "batch" is trainable batch norm, "frozen" constants (the authors' networks).
        backbone_stem: of ResNet only: "basic" is one 7x7 convolution; "deeplab" three 3x3 convolutions, and dilation
            1, 2, 4 in the last stage (the authors' R50c and R101c).
        class_cost: weight of the class probability in the matching cost.
        class_weights: one weight per class for the cross entropy; None: all 1.
        stuff_class_ids: classes that are stuff; the panoptic post-processing fuses their segments.
        **kwargs: fields of `transformers.PreTrainedConfig`: `id2label`, `num_labels`, `output_hidden_states`, ...

    Raises:
        ValueError: a field is outside its range, or the decoder is not a DETR decoder.

    Examples:
        >>> config = MaskFormerConfig(num_labels=3, mask_feature_size=64)
        >>> config.num_labels, config.decoder_config.num_queries
        (3, 100)
        >>> MaskFormerConfig.from_zoo("swin-tiny-ade20k-150").num_labels
        150
    """

    model_type = "maskformer"
    attribute_map = {"hidden_size": "mask_feature_size"}
    # A property in the newest releases, a plain dictionary in the oldest that are supported.
    sub_configs = {  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]
        "backbone_config": AutoConfig,
        "decoder_config": AutoConfig,
    }
    backbones_supported = ["resnet", "swin"]
    decoders_supported = ["detr"]

    def __init__(
        self,
        fpn_feature_size: int = 256,
        mask_feature_size: int = 256,
        no_object_weight: float = 0.1,
        use_auxiliary_loss: bool = False,
        backbone_config: dict[str, Any] | PreTrainedConfig | None = None,
        decoder_config: dict[str, Any] | PreTrainedConfig | None = None,
        init_std: float = 0.02,
        init_xavier_std: float = 1.0,
        dice_weight: float = 1.0,
        cross_entropy_weight: float = 1.0,
        mask_weight: float = 20.0,
        output_auxiliary_logits: bool | None = None,
        deep_supervision: bool = False,
        pixel_decoder_encoder_layers: int = 0,
        enforce_input_projection: bool = False,
        backbone_norm: Literal["batch", "frozen"] = "batch",
        backbone_stem: Literal["basic", "deeplab"] = "basic",
        class_cost: float = 1.0,
        class_weights: Sequence[float] | None = None,
        stuff_class_ids: Sequence[int] | None = None,
        **kwargs: Any,
    ):
        self.fpn_feature_size = fpn_feature_size
        self.mask_feature_size = mask_feature_size
        self.no_object_weight = no_object_weight
        self.use_auxiliary_loss = bool(use_auxiliary_loss or deep_supervision)
        if backbone_config is None and kwargs.get("backbone") is not None:
            raise ValueError(
                f"the backbone is given by its name, backbone={kwargs['backbone']!r}, expected its configuration: "
                f"pass backbone_config=AutoConfig.from_pretrained({kwargs['backbone']!r})"
            )
        self.backbone_config = _nested_config(backbone_config, _zoo_backbone("Swin-B", 0.3))
        self.decoder_config = _nested_config(decoder_config, {"model_type": "detr"})
        self.init_std = init_std
        self.init_xavier_std = init_xavier_std
        self.dice_weight = dice_weight
        self.cross_entropy_weight = cross_entropy_weight
        self.mask_weight = mask_weight
        self.output_auxiliary_logits = output_auxiliary_logits
        self.pixel_decoder_encoder_layers = pixel_decoder_encoder_layers
        self.enforce_input_projection = enforce_input_projection
        self.backbone_norm: Literal["batch", "frozen"] = backbone_norm
        self.backbone_stem: Literal["basic", "deeplab"] = backbone_stem
        self.class_cost = class_cost
        self.class_weights = None if class_weights is None else [float(weight) for weight in class_weights]
        self.stuff_class_ids = None if stuff_class_ids is None else [int(label) for label in stuff_class_ids]

        super().__init__(**kwargs)
        self._check()
        # Derived, under the names generic tools of transformers look for; what a file says of them does not count.
        self.num_attention_heads = self.decoder_config.encoder_attention_heads
        self.num_hidden_layers = self.decoder_config.encoder_layers

    def _check(self) -> None:
        if self.decoder_config.model_type not in self.decoders_supported:
            raise ValueError(
                f"decoder_config is of model type {self.decoder_config.model_type!r}, expected 'detr': "
                "pass a DetrConfig or a dict with model_type='detr'"
            )
        if self.backbone_norm not in ("batch", "frozen"):
            raise ValueError(f"backbone_norm is {self.backbone_norm!r}, expected 'batch' or 'frozen'")
        if self.backbone_stem not in ("basic", "deeplab"):
            raise ValueError(f"backbone_stem is {self.backbone_stem!r}, expected 'basic' or 'deeplab'")
        if self.pixel_decoder_encoder_layers < 0:
            raise ValueError(
                f"pixel_decoder_encoder_layers is {self.pixel_decoder_encoder_layers}, expected 0 (plain FPN) or more"
            )
        if self.class_weights is not None and len(self.class_weights) != self.num_labels:
            raise ValueError(
                f"class_weights has {len(self.class_weights)} entries but the model has {self.num_labels} classes: "
                "give one weight per class of id2label, without the no-object class"
            )
        if any(label not in range(self.num_labels or 0) for label in self.stuff_class_ids or ()):
            raise ValueError(
                f"stuff_class_ids is {self.stuff_class_ids}, expected class ids from 0 to {(self.num_labels or 0) - 1}"
            )

    def __eq__(self, other: object) -> bool:
        # The newest releases would generate one that compares the fields of their base class and none of these.
        return type(other) is type(self) and self._content() == other._content()

    def _content(self) -> dict[str, Any]:
        return {name: value for name, value in self.to_dict().items() if name != "_name_or_path"}

    @property
    def is_extended(self) -> bool:
        """Whether transformers' own class cannot represent this network."""
        return (
            self.pixel_decoder_encoder_layers > 0
            or self.backbone_stem != "basic"
            or (self.enforce_input_projection and self.lowest_width == self.decoder_config.d_model)
        )

    @property
    def lowest_width(self) -> int | None:
        """Channels of the backbone's lowest map; None if its configuration does not say."""
        widths = getattr(self.backbone_config, "hidden_sizes", None)
        return widths[-1] if widths else getattr(self.backbone_config, "hidden_size", None)

    @classmethod
    def from_backbone_and_decoder_configs(
        cls, backbone_config: PreTrainedConfig, decoder_config: PreTrainedConfig, **kwargs: Any
    ) -> MaskFormerConfig:
        """A configuration out of the two nested ones, as in transformers."""
        return cls(backbone_config=backbone_config, decoder_config=decoder_config, **kwargs)

    @classmethod
    @explained
    def from_zoo(cls, name: str, **overrides: Any) -> MaskFormerConfig:
        """The configuration of one of the 30 published models (`maskformer zoo` lists them).

        `name` is a zoo name or the authors' configuration path; `overrides` replace fields.

        Raises:
            ValueError: there is no such model.
        """
        entries = json.loads(resources.files("maskformer.checkpoints").joinpath("zoo.json").read_text())
        for entry in entries:
            if name in (entry["name"], entry["original_config"]):
                return _zoo_config(entry, overrides)
        known = ", ".join(entry["name"] for entry in entries)
        raise ValueError(f"there is no published model called {name!r}; the zoo has: {known}")

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> tuple[dict[str, Any], Any]:
        """The dictionary of a file, with this package's own model types brought back to the published ones."""
        config, rest = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if config.get("model_type") in _OUR_MODEL_TYPES:
            config["model_type"] = cls.model_type
        return config, rest

    def to_dict(self) -> dict[str, Any]:
        """The dictionary that is written to `config.json`.

        `use_auxiliary_loss` is always written as false, beside our own `deep_supervision`: a saved true makes
        transformers raise, even at inference.
        """
        output = super().to_dict()
        output = {name: value for name, value in output.items() if name not in _ADDITIONS or value != _ADDITIONS[name]}
        if output.pop("use_auxiliary_loss", False):
            output["deep_supervision"] = True
        output["use_auxiliary_loss"] = False
        if self.is_extended:
            # The nested type is what makes transformers' MaskFormerConfig refuse; the outer one its AutoConfig.
            output["model_type"] = EXTENDED_MODEL_TYPE
            output["decoder_config"]["model_type"] = EXTENDED_MODEL_TYPE
        return output


class PerPixelBaselineConfig(MaskFormerConfig):
    """Configuration of `PerPixelBaseline` and `PerPixelBaselinePlus` (paper section 4.1 and appendix).

    The same fields; the decoder is used by baseline+ alone, whose queries are the classes.
    """

    model_type = PER_PIXEL_MODEL_TYPE

    def __init__(self, **kwargs: Any):
        # Without a constructor of its own the class would get a generated one, which knows none of the fields.
        super().__init__(**kwargs)

    __eq__ = MaskFormerConfig.__eq__

    @property
    def is_extended(self) -> bool:
        return True

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        output["model_type"] = PER_PIXEL_MODEL_TYPE
        return output


def _nested_config(given: dict[str, Any] | PreTrainedConfig | None, default: dict[str, Any]) -> Any:
    if isinstance(given, PreTrainedConfig):
        return given
    fields = dict(default if given is None else given)
    model_type = fields.pop("model_type", default["model_type"])
    if model_type in _OUR_MODEL_TYPES:
        model_type = "detr"
    try:
        return AutoConfig.for_model(model_type, **fields)
    except ValueError as error:
        raise ValueError(
            f"the nested configuration has model_type {model_type!r}, which transformers does not know; "
            "use one of its backbones, such as 'swin' or 'resnet', and 'detr' for the decoder"
        ) from error


def _zoo_backbone(name: str, drop_path: float | None) -> dict[str, Any]:
    if name in _SWIN_SIZES:
        return {
            "model_type": "swin",
            "image_size": 384 if _SWIN_SIZES[name]["window_size"] == 12 else 224,
            "drop_path_rate": drop_path,
            "out_features": BACKBONE_STAGES,
            **_SWIN_SIZES[name],
        }
    return {
        "model_type": "resnet",
        "depths": _RESNET_DEPTHS[name.rstrip("c")],
        "embedding_size": 128 if name.endswith("c") else 64,
        "out_features": BACKBONE_STAGES,
    }


def _zoo_config(entry: dict[str, Any], overrides: dict[str, Any]) -> MaskFormerConfig:
    backbone, dropout = entry["backbone"].split(" ")[0], entry["dropout"]
    fields: dict[str, Any] = {
        "backbone_config": _zoo_backbone(backbone, entry["drop_path"]),
        "decoder_config": {
            "model_type": "detr",
            "num_queries": entry["queries"],
            "decoder_layers": entry["decoder_layers"],
            # The authors' attention and feed-forward layers drop at the same rate as the residual branches.
            "dropout": dropout,
            "attention_dropout": dropout,
            "activation_dropout": dropout,
        },
        "num_labels": entry["num_classes"],
        "no_object_weight": entry["no_object_weight"],
        "deep_supervision": entry["deep_supervision"],
        "enforce_input_projection": entry["enforce_input_projection"],
        "backbone_norm": "frozen" if backbone.startswith("R") else "batch",
        "backbone_stem": "deeplab" if backbone.endswith("c") else "basic",
        "pixel_decoder_encoder_layers": entry["encoder_layers"] if "Transformer" in entry["pixel_decoder"] else 0,
    }
    classes = {
        "MaskFormer": (MaskFormerConfig, "MaskFormerForInstanceSegmentation"),
        "PerPixelBaseline": (PerPixelBaselineConfig, "PerPixelBaseline"),
        "PerPixelBaseline+": (PerPixelBaselineConfig, "PerPixelBaselinePlus"),
    }
    config_class, architecture = classes[entry["model"]]
    if not {"num_labels", "id2label"} & overrides.keys():  # of other classes it cannot tell
        fields["stuff_class_ids"] = entry["stuff_class_ids"]
    arguments: dict[str, Any] = {**fields, "architectures": [architecture], **overrides}
    return config_class(**arguments)
