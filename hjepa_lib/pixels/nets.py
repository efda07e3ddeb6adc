"""Encoders of frame stacks, one interface: (B, L, C, Hpx, Wpx) floats in [0, 1] -> (B, D).

`vit`: every frame on its own through a vision transformer (arXiv 2010.11929), then a transformer
over the L frame tokens. `cnn`: strided convolutions over the L * C planes of the stack. `mlp`: all
pixels flattened. One setting, `pixels.encoder.kind`, switches the encoder of every model. Positions
are learned and added once, to the tokens that they belong to (F8); a CLS token stands at no place
and has none.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hjepa_lib.config.fields import ConfigError
from hjepa_lib.config.pixels import PixelEncoderConfig
from hjepa_lib.models.layers import mlp
from hjepa_lib.models.transformer import Transformer

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU}


def sides(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) in px of a square or rectangular image."""
    return (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)


def patch_grid(image_size: int | tuple[int, int], patch: int) -> tuple[int, int]:
    """Patches along (height, width); ConfigError when the image does not divide into them."""
    height, width = sides(image_size)
    if height % patch or width % patch:
        raise ConfigError(f"images of {height} x {width} px do not divide into {patch} px patches")
    return height // patch, width // patch


class Patches(nn.Module):
    """(M, C, Hpx, Wpx) -> (M, N, dim): a linear token per patch, row by row, plus its position."""

    def __init__(
        self, channels: int, image_size: int | tuple[int, int], patch: int, dim: int
    ) -> None:
        super().__init__()
        rows, columns = patch_grid(image_size, patch)
        self.count = rows * columns
        self.project = nn.Conv2d(channels, dim, patch, stride=patch)
        self.position = nn.Parameter(torch.zeros(self.count, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.project(x).flatten(2).transpose(1, 2) + self.position


class VitEncoder(nn.Module):
    """Spatial transformer per frame, temporal transformer over the frames (MOD-2)."""

    def __init__(
        self,
        config: PixelEncoderConfig,
        channels: int,
        stack: int,
        image_size: int | tuple[int, int],
    ) -> None:
        super().__init__()
        dim, self.pool = config.latent_dim, config.pool
        self.patches = Patches(channels, image_size, config.patch, dim)
        self.cls = nn.Parameter(torch.zeros(dim))
        self.dropout = nn.Dropout(config.embedding_dropout)
        self.spatial = Transformer(
            dim, config.depth, config.heads, config.head_dim, config.mlp_dim, config.dropout
        )
        self.temporal: Transformer | None = None
        if config.temporal_depth:
            heads = config.temporal_heads
            self.temporal = Transformer(
                dim, config.temporal_depth, heads, max(1, dim // heads), config.temporal_mlp,
                config.temporal_dropout,
            )  # fmt: skip
            self.frame_cls = nn.Parameter(torch.zeros(dim))
            self.frame_position = nn.Parameter(torch.zeros(stack, dim))
        else:  # frames side by side keep their order without a transformer
            self.join = nn.Linear(stack * dim, dim)
        # The last LayerNorm fixes the length of its output; the head gives the latent a scale.
        self.head = nn.Linear(dim, dim)

    def frames(self, x: Tensor) -> Tensor:
        """(M, C, Hpx, Wpx) -> (M, dim): one token per frame."""
        tokens = self.patches(x)  # (M, N, dim)
        cls = self.cls.expand(len(tokens), 1, -1)
        tokens = self.spatial(self.dropout(torch.cat([cls, tokens], dim=1)))
        return tokens[:, 0] if self.pool == "cls" else tokens[:, 1:].mean(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.frames(x.flatten(0, 1)).unflatten(0, x.shape[:2])  # (B, L, dim)
        if self.temporal is None:
            return self.head(self.join(tokens.flatten(1)))
        cls = self.frame_cls.expand(len(tokens), 1, -1)
        tokens = self.temporal(torch.cat([cls, tokens + self.frame_position], dim=1))
        return self.head(tokens[:, 0])


class CnnEncoder(nn.Module):
    """3 x 3 convolutions of stride 2 with doubling filters, then linear (MOD-3)."""

    def __init__(
        self,
        config: PixelEncoderConfig,
        channels: int,
        stack: int,
        image_size: int | tuple[int, int],
    ) -> None:
        super().__init__()
        activation = ACTIVATIONS[config.cnn_activation]
        layers: list[nn.Module] = []
        width = channels * stack
        height, breadth = sides(image_size)
        for index in range(config.cnn_layers):
            filters = config.cnn_filters * 2**index
            layers += [nn.Conv2d(width, filters, 3, stride=2, padding=1), activation()]
            layers.append(nn.Dropout2d(config.cnn_dropout))
            width, height, breadth = filters, (height + 1) // 2, (breadth + 1) // 2
        self.convs = nn.Sequential(*layers)
        head: list[nn.Module] = []
        features = width * height * breadth
        if config.cnn_hidden:
            head += [nn.Linear(features, config.cnn_hidden), activation()]
            features = config.cnn_hidden
        self.head = nn.Sequential(*head, nn.Linear(features, config.latent_dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.convs(x.flatten(1, 2)).flatten(1))


class MlpEncoder(nn.Module):
    """All pixels through hidden layers; without any it is one linear map (MOD-4)."""

    def __init__(
        self,
        config: PixelEncoderConfig,
        channels: int,
        stack: int,
        image_size: int | tuple[int, int],
    ) -> None:
        super().__init__()
        height, width = sides(image_size)
        hidden = [config.mlp_hidden] * config.mlp_layers
        self.layers = mlp(
            stack * channels * height * width, *hidden, config.latent_dim,
            activation=ACTIVATIONS[config.mlp_activation], dropout=config.mlp_dropout,
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.flatten(1))


ENCODERS: dict[str, type[nn.Module]] = {"vit": VitEncoder, "cnn": CnnEncoder, "mlp": MlpEncoder}


def build_pixel_encoder(
    config: PixelEncoderConfig, channels: int, stack: int, image_size: int | tuple[int, int]
) -> nn.Module:
    """The encoder `config.kind` for stacks of `stack` frames with `channels` planes each."""
    if config.kind not in ENCODERS:
        raise ConfigError(f"unknown encoder {config.kind!r}; known: {', '.join(ENCODERS)}")
    return ENCODERS[config.kind](config, channels, stack, image_size)
