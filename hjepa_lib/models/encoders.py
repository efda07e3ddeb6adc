"""Image encoders: (M, C, Hpx, Wpx) normalised pixels -> (M, D) latents.

Each has a `norm`, the last thing a latent goes through: of `impala` a LayerNorm, as in PLDM and
EB-JEPA; of the others one when the predictor is a GRU, whose state could not reach their scale.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hjepa_lib.config import ConfigError, Level1Config
from hjepa_lib.models.layers import Patches, Size, Transformer, full_precision, sides

MIN_IMAGE = 16  # px
SPREAD = 2.0  # keypoint coordinates of the image's edges: the dot's then have a spread near 1


def output_norm(config: Level1Config) -> nn.Module:
    """The `norm` of an encoder that has none of its own."""
    return nn.LayerNorm(config.latent_dim) if config.predictor == "gru" else nn.Identity()


class ResidualBlock(nn.Module):
    """relu(x + conv(relu(conv x))), no normalisation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.conv2(F.relu(self.conv1(x))))


class ImpalaEncoder(nn.Module):
    """IMPALA stacks of 16, 32, 32 channels, then Linear and LayerNorm.

    The reference of PLDM and EB-JEPA (arXiv 2502.14819, 2602.03604): 1,426,096 weights at 65 px and
    D = 512. Unlike the public code its head infers the flattened width (PL10).
    """

    CHANNELS = (16, 32, 32)

    def __init__(self, config: Level1Config, channels: int, image_size: Size) -> None:
        super().__init__()
        stacks: list[nn.Module] = []
        before, (height, width) = channels, sides(image_size)
        for after in self.CHANNELS:
            stacks += [
                nn.Conv2d(before, after, 3, padding=1),
                nn.MaxPool2d(3, stride=2, padding=1),
                ResidualBlock(after),
                ResidualBlock(after),
            ]
            before, height, width = after, (height + 1) // 2, (width + 1) // 2
        self.stacks = nn.Sequential(*stacks)
        self.head = nn.Linear(before * height * width, config.latent_dim)
        self.norm = nn.LayerNorm(config.latent_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stacks(x)).flatten(1)  # (M, 32 * 9 * 9) at 65 px
        return self.norm(self.head(x))


class FastEncoder(nn.Module):
    """Conv 7x7 stride 4, two convs 3x3 stride 2, then Linear: activations stay in a CPU's cache."""

    def __init__(
        self, config: Level1Config, channels: int, image_size: Size, latent_dim: int = 0
    ) -> None:
        super().__init__()
        width = config.width
        self.convs = nn.Sequential(
            nn.Conv2d(channels, width, 7, stride=4, padding=3),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        with torch.no_grad():
            features = self.convs(torch.zeros(1, channels, *sides(image_size)))
        self.head = nn.Linear(features.numel(), latent_dim or config.latent_dim)
        self.norm = output_norm(config)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.head(self.convs(x).flatten(1)))


class KeypointEncoder(nn.Module):
    """Where something is instead of what is at each place: per feature map its expected place.

    Spatial softmax (arXiv 1509.06113), then one Linear over the 2 * width coordinates; a static
    part comes from a `fast` encoder of its own: walls are no points.
    """

    def __init__(self, config: Level1Config, channels: int, image_size: Size) -> None:
        super().__init__()
        width, static = config.width, config.static_dim
        self.scene = FastEncoder(config, channels, image_size, static) if static else None
        self.convs = nn.Sequential(
            nn.Conv2d(channels, width, 7, stride=4, padding=3),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
        )
        down, across = (
            torch.linspace(-SPREAD, SPREAD, (side - 1) // 4 + 1) for side in sides(image_size)
        )
        places = torch.stack(torch.meshgrid(across, down, indexing="xy"), -1)  # (H, W, 2) x, y
        self.register_buffer("places", places.reshape(-1, 2), persistent=False)
        self.head = nn.Linear(2 * width, config.latent_dim - static)
        self.norm = output_norm(config)

    def locate(self, x: Tensor) -> Tensor:
        """(M, C, Hpx, Wpx) -> (M, width, 2) expected (x, y), in [-2, 2] from edge to edge."""
        maps = self.convs(x).flatten(2)  # (M, width, cells)
        with full_precision(x):  # bf16 would round places to 0.2 px
            return maps.float().softmax(-1) @ self.places

    def forward(self, x: Tensor) -> Tensor:
        moving = self.head(self.locate(x).flatten(1))
        return self.norm(moving if self.scene is None else torch.cat([self.scene(x), moving], 1))


class VitEncoder(nn.Module):
    """Patches through `depth` transformer blocks, then one Linear over all tokens at their places.

    Vision transformer (arXiv 2010.11929) of one frame, without dropout. Not from a class token:
    that has to carry WHERE the dot is, and learns it far more slowly.
    """

    def __init__(self, config: Level1Config, channels: int, image_size: Size) -> None:
        super().__init__()
        width, heads = config.width, config.heads
        self.patches = Patches(channels, image_size, config.patch, width)
        self.blocks = Transformer(width, config.depth, heads, max(1, width // heads), 2 * width)
        self.head = nn.Linear(self.patches.count * width, config.latent_dim)
        self.norm = output_norm(config)

    def forward(
        self, x: Tensor, hidden: Tensor | None = None, token: Tensor | None = None
    ) -> Tensor:
        """(M, C, Hpx, Wpx) -> (M, D); patches where `hidden` (M, N) is True become `token`.

        A hidden patch keeps its position, which is added once (F8).
        """
        tokens = self.patches(x)  # (M, N, width), positions included
        if hidden is not None:
            blank = (token + self.patches.position).to(tokens.dtype)  # (N, width)
            tokens = torch.where(hidden[..., None], blank, tokens)
        return self.norm(self.head(self.blocks(tokens).flatten(1)))


ENCODERS: dict[str, type[nn.Module]] = {
    "impala": ImpalaEncoder, "fast": FastEncoder, "keypoint": KeypointEncoder, "vit": VitEncoder,
}  # fmt: skip


def build_encoder(config: Level1Config, channels: int, image_size: Size) -> nn.Module:
    """The encoder `config.encoder`; ConfigError for images that are too small for any."""
    if min(sides(image_size)) < MIN_IMAGE:
        raise ConfigError(f"images must be at least {MIN_IMAGE} px wide, got {image_size}")
    return ENCODERS[config.encoder](config, channels, image_size)
