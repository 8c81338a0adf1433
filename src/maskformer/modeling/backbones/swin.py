"""Swin Transformer (Liu et al., arXiv 2103.14030), the backbone of the paper's strongest models (section 4.1).

Every block attends inside windows of M x M tokens; every second block moves the windows by M // 2, so that neighbours
meet. Each map that leaves the backbone is a stage's last block, before the merging into the next stage, normalised.
Module names are the published checkpoints'.

B batch, H W image, h w tokens of a stage, n windows per image, M window side, N = M * M slots per window, C channels,
K heads, D = C / K.
"""

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskformer.kernels.dense import Linear
from maskformer.modeling.backbones.contract import FeatureMaps, check_four_stages, check_pixel_values
from maskformer.modeling.backbones.windows import WindowLayout, ceil_divide, from_windows, to_windows, window_layout
from maskformer.modeling.recomputation import Recomputing

# Added to a score to forbid it: the authors' value, finite, so that no softmax can meet a row of nothing but -inf.
FORBIDDEN = -100.0
# Of tokens that go through an MLP at once in inference: 2 MB.
VALUES_AT_ONCE = 2**19


def relative_position_index(window_size: int, device: torch.device | None = None) -> Tensor:
    """Which row of the bias table a pair of tokens reads, [N, N] in [0, (2M - 1)^2).

    A pair (query, key) is dy = y_q - y_k rows and dx = x_q - x_k columns apart, both in [-(M - 1), M - 1]. With M = 2,
    tokens numbered  0 1   the rows are   4 3 1 0
                     2 3                  5 4 2 1
                                          7 6 4 3
                                          8 7 5 4   = (dy + M - 1) * (2M - 1) + (dx + M - 1).
    """
    side = torch.arange(window_size, device=device)
    offset = side[:, None] - side[None, :] + window_size - 1  # [M, M], of one axis
    rows = offset[:, None, :, None] * (2 * window_size - 1)
    columns = offset[None, :, None, :]
    return (rows + columns).reshape(window_size**2, window_size**2)  # [My, Mx, My, Mx] -> [N, N]


class Dense(nn.Module):
    """A linear layer with what follows it: activation (optional), then dropout. [..., C_in] -> [..., C_out]."""

    def __init__(
        self, in_features: int, out_features: int, dropout: float, activation: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.dense = Linear(in_features, out_features)
        self.activation = activation if activation is not None else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.is_gelu = isinstance(activation, nn.GELU) and activation.approximate == "none"

    def forward(self, tokens: Tensor) -> Tensor:
        # Only the layer as it was made may do both at once: adapters and hooks stand between them.
        if self.is_gelu and type(self.dense) is Linear and not self.dense._forward_hooks:
            return self.dropout(self.dense(tokens, gelu=True))
        return self.dropout(self.activation(self.dense(tokens)))


class WindowSelfAttention(nn.Module):
    """Multi-head attention of the tokens of each window among themselves, with a learned bias per relative position."""

    relative_position_index: Tensor

    def __init__(self, dim: int, num_heads: int, window_size: int, qkv_bias: bool, dropout: float) -> None:
        super().__init__()
        if dim % num_heads != 0:
            raise ValueError(f"Swin got {dim} channels for {num_heads} heads, expected a multiple: change num_heads.")
        self.num_heads = num_heads
        self.window_size = window_size
        self.dropout = dropout
        self.query = Linear(dim, dim, bias=qkv_bias)
        self.key = Linear(dim, dim, bias=qkv_bias)
        self.value = Linear(dim, dim, bias=qkv_bias)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * self.window_size - 1) ** 2, num_heads))
        # not on the table's device: Accelerate's empty weights leave none but parameters on the meta device
        index = relative_position_index(self.window_size)
        self.register_buffer("relative_position_index", index, persistent=False)

    def reset_buffers(self) -> None:
        """Recompute, in place, what no checkpoint holds; needed once the module has left the meta device."""
        index = self.relative_position_index
        index.copy_(relative_position_index(self.window_size, index.device))

    def position_bias(self, dtype: torch.dtype) -> Tensor:
        """[1, K, N, N]. Gathered on every call: it costs a hundredth of the attention, and a cache could go stale."""
        tokens = self.window_size**2
        index = self.relative_position_index.flatten()
        bias = self.relative_position_bias_table.to(dtype).index_select(0, index)
        bias = bias.view(1, tokens, tokens, self.num_heads)
        return bias.permute(0, 3, 1, 2).contiguous()  # [1, N, N, K] -> [1, K, N, N]

    def forward(self, tokens: Tensor, layout: WindowLayout, crosses: Tensor | None) -> Tensor:
        """[B, h * w, C] -> [B, h * w, C]; `crosses` [n, N, N] is true where a slot may not look at another."""
        batch, _, channels = tokens.shape
        num = layout.region.shape[0]
        tokens = torch.cat([tokens, tokens.new_zeros(batch, 1, channels)], dim=1)  # and the padding: [B, h * w + 1, C]
        query, key, value = (
            self._split(to_windows(project(tokens), layout)) for project in (self.query, self.key, self.value)
        )
        bias = self.position_bias(query.dtype)
        if crosses is not None:
            bias = torch.add(bias, crosses[:, None].to(bias.dtype), alpha=FORBIDDEN)  # [n, K, N, N]
            # The images of a batch share what is forbidden. Windows are folded into the heads, so that its sum with the
            # bias is broadcast over the batch: repeated for each image it would be the largest tensor of the network.
            # A single image is spared the copies that folding makes.
            if torch.compiler.is_compiling() or batch > 1:
                bias = bias.flatten(0, 1)[None]
                query, key, value = (
                    each.reshape(batch, num * self.num_heads, *each.shape[2:]) for each in (query, key, value)
                )
        attended = self._attend(query, key, value, bias)
        attended = attended.reshape(batch * num, self.num_heads, self.window_size**2, -1).transpose(1, 2)
        return from_windows(attended.reshape(batch, -1, channels), layout)  # [B * n, N, K, D] -> [B, n * N, C]

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        if not torch.compiler.is_exporting():
            return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
        # A graph cannot leave open whether the bias is broadcast (there may be one window) or how the result lies in
        # memory (kernels differ): whoever lowers it to simpler operations would have to ask.
        bias = bias.expand(query.shape[0], -1, -1, -1)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
        return attended.clone(memory_format=torch.contiguous_format)

    def _split(self, windows: Tensor) -> Tensor:
        shape = (-1, self.window_size**2, self.num_heads, windows.shape[-1] // self.num_heads)
        return windows.reshape(shape).transpose(1, 2)  # [B, n * N, C] -> [B * n, K, N, D]


class SwinBlock(nn.Module):
    """Window attention and MLP, each on a residual branch that stochastic depth may drop (arXiv 1603.09382)."""

    def __init__(
        self,
        dim: int,
        attention: WindowSelfAttention,
        hidden: int,
        activation: nn.Module,
        dropout: float,
        drop_path: float,
        layer_norm_eps: float,
    ) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.layernorm_before = nn.LayerNorm(dim, eps=layer_norm_eps)
        self.attention = nn.ModuleDict({"self": attention, "output": Dense(dim, dim, dropout)})
        self.layernorm_after = nn.LayerNorm(dim, eps=layer_norm_eps)
        self.intermediate = Dense(dim, hidden, dropout, activation)
        self.output = Dense(hidden, dim, dropout)

    def forward(self, tokens: Tensor, layout: WindowLayout, crosses: Tensor | None) -> Tensor:
        """[B, h * w, C] -> [B, h * w, C], attending in the windows of `layout`."""
        attended = self.attention["self"](self.layernorm_before(tokens), layout, crosses)
        tokens = tokens + self._maybe_drop(self.attention["output"](attended))
        plain = self.training or torch.is_grad_enabled() or torch.compiler.is_compiling()
        if plain or tokens.device.type != "cpu":
            return tokens + self._maybe_drop(self._mlp(tokens))
        # On a CPU, the hidden values of all tokens would be the largest tensor of the network, and leave the caches.
        width = tokens.shape[-1]
        for some in tokens.view(-1, width).split(max(1, VALUES_AT_ONCE // width)):
            some += self._mlp(some)
        return tokens

    def _mlp(self, tokens: Tensor) -> Tensor:
        return self.output(self.intermediate(self.layernorm_after(tokens)))

    def _maybe_drop(self, branch: Tensor) -> Tensor:
        if self.drop_path == 0.0 or not self.training:
            return branch
        keep = 1.0 - self.drop_path
        # A rate of one would divide by zero: it keeps nothing, whatever the scale.
        kept = torch.empty(branch.shape[0], 1, 1, device=branch.device).bernoulli_(keep) / (keep or 1.0)
        return branch * kept.to(branch.dtype)


class PatchMerging(nn.Module):
    """Half the resolution, twice the channels: [B, h, w, C] -> [B, ceil(h / 2), ceil(w / 2), 2C]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, height, width, channels = tokens.shape
        rows, columns = ceil_divide(height, 2), ceil_divide(width, 2)
        bottom, right = 2 * rows - height, 2 * columns - width
        # Padding by nothing would copy. While a graph is traced the sizes may be symbols: a branch would pin them.
        if torch.compiler.is_compiling() or bottom > 0 or right > 0:
            tokens = F.pad(tokens, (0, 0, 0, right, 0, bottom))
        squares = tokens.view(batch, rows, 2, columns, 2, channels)
        # The checkpoints' order of the four tokens runs down the columns first.
        merged = squares.permute(0, 1, 3, 4, 2, 5).reshape(batch, rows, columns, 4 * channels)
        return self.reduction(self.norm(merged))


class SwinStage(Recomputing):
    """The blocks of one resolution, every second one with shifted windows, and the merging into the next."""

    def __init__(self, blocks: Sequence[SwinBlock], downsample: PatchMerging | None, window_size: int) -> None:
        super().__init__()
        self.window_size = window_size
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """[B, h, w, C] -> the last block's tokens [B, h, w, C], and the next stage's [B, h / 2, w / 2, 2C]."""
        flat = tokens.flatten(1, 2)  # [B, h * w, C]
        straight = window_layout(tokens, self.window_size, 0)
        shifted = window_layout(tokens, self.window_size, self.window_size // 2) if len(self.blocks) > 1 else straight
        crosses = shifted.region[:, :, None] != shifted.region[:, None, :]  # [n, N, N]
        for index, block in enumerate(self.blocks):
            around = (straight, None) if index % 2 == 0 else (shifted, crosses)
            flat = self.run(block, flat, *around)
        tokens = flat.view(tokens.shape)  # [B, h, w, C]
        return tokens, tokens if self.downsample is None else self.downsample(tokens)


class PatchEmbeddings(nn.Module):
    """Cuts the image into patches, zeros filling the last ones, projects and normalises each.

    Position embeddings, where there is a grid of patches they are learned for, are absolute.
    """

    def __init__(self, projection: nn.Conv2d, position_grid: tuple[int, int] | None, dropout: float) -> None:
        super().__init__()
        self.num_channels, embed_dim = projection.in_channels, projection.out_channels
        self.patch_size = projection.kernel_size[0]
        self.patch_embeddings = nn.ModuleDict({"projection": projection})
        self.norm = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.position_grid = position_grid
        # Row 0 belongs to a class token that Swin does not have: it is there because the files have it.
        rows = None if position_grid is None else 1 + math.prod(position_grid)
        self.position_embeddings = None if rows is None else nn.Parameter(torch.zeros(1, rows, embed_dim))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, h, w, C]."""
        check_pixel_values(pixel_values, self.num_channels)
        bottom, right = (
            ceil_divide(size, self.patch_size) * self.patch_size - size for size in pixel_values.shape[-2:]
        )
        patches = self.patch_embeddings["projection"](F.pad(pixel_values, (0, right, 0, bottom)))
        tokens = self.norm(patches.permute(0, 2, 3, 1))  # [B, C, h, w] -> [B, h, w, C]
        if self.position_embeddings is not None:
            tokens = tokens + self._positions(self.position_embeddings, tokens.shape[1], tokens.shape[2])
        return self.dropout(tokens)

    def _positions(self, embeddings: Tensor, height: int, width: int) -> Tensor:
        assert self.position_grid is not None
        grid = embeddings[:, 1:].unflatten(1, self.position_grid).permute(0, 3, 1, 2)  # [1, C, rows, columns]
        # Resized also where the size fits, which changes nothing: a branch on the size could not be exported.
        resized = F.interpolate(grid, (height, width), mode="bicubic", align_corners=False)  # [1, C, h, w]
        return resized.permute(0, 2, 3, 1)  # [1, h, w, C]


class SwinBackbone(nn.Module):
    """Swin, as a `SwinConfig` of transformers describes it, with a normalisation per map.

    Images of any size: patches, windows and pairs of tokens are filled up with zeros. The maps are channels-last in
    memory (the tokens, seen as [B, C_i, h_i, w_i]), which convolutions of the decoder read without a copy.
    """

    def __init__(self, config: Any, activation: nn.Module) -> None:
        super().__init__()
        depths: Sequence[int] = config.depths
        check_four_stages("Swin", depths=tuple(depths), num_heads=tuple(config.num_heads))
        embeddings = _patch_embeddings(config)
        self.channels = [config.embed_dim * 2**stage for stage in range(len(depths))]
        self.strides = [embeddings.patch_size * 2**stage for stage in range(len(depths))]
        # Stochastic depth rises evenly from the first block to the last.
        rates = iter(config.drop_path_rate * block / max(sum(depths) - 1, 1) for block in range(sum(depths)))
        stages = nn.ModuleList()
        for dim, depth, heads in zip(self.channels, depths, config.num_heads, strict=True):
            blocks = [_block(config, dim, heads, activation, next(rates)) for _ in range(depth)]
            merging = PatchMerging(dim) if dim != self.channels[-1] else None
            stages.append(SwinStage(blocks, merging, config.window_size))
        self.model = nn.ModuleDict({"embeddings": embeddings, "encoder": nn.ModuleDict({"layers": stages})})
        self.hidden_states_norms = nn.ModuleList(nn.LayerNorm(channels) for channels in self.channels)

    def forward(self, pixel_values: Tensor) -> FeatureMaps:
        """[B, 3, H, W] -> four maps [B, C_i, h_i, w_i], h_i = ceil(H / strides[i])."""
        tokens = self.model["embeddings"](pixel_values)
        maps: list[Tensor] = []
        stages = cast(nn.ModuleList, cast(nn.ModuleDict, self.model["encoder"])["layers"])
        for stage, norm in zip(stages, self.hidden_states_norms, strict=True):
            output, tokens = stage(tokens)
            maps.append(norm(output).permute(0, 3, 1, 2))  # [B, h, w, C] -> [B, C, h, w]
        return FeatureMaps(*maps)


def _patch_embeddings(config: Any) -> PatchEmbeddings:
    (patch, columns), image = _pair(config.patch_size), _pair(config.image_size)
    if patch != columns:
        raise ValueError(f"Swin got patch_size={config.patch_size}, expected square patches: give one integer.")
    projection = nn.Conv2d(config.num_channels, config.embed_dim, patch, stride=patch)
    grid = (image[0] // patch, image[1] // patch) if config.use_absolute_embeddings else None
    return PatchEmbeddings(projection, grid, config.hidden_dropout_prob)


def _block(config: Any, dim: int, num_heads: int, activation: nn.Module, drop_path: float) -> SwinBlock:
    attention = WindowSelfAttention(
        dim, num_heads, config.window_size, config.qkv_bias, config.attention_probs_dropout_prob
    )
    hidden, dropout = int(config.mlp_ratio * dim), config.hidden_dropout_prob
    return SwinBlock(dim, attention, hidden, activation, dropout, drop_path, config.layer_norm_eps)


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return height, width
