"""Image encoders: (M, C, Hpx, Wpx) normalised pixels -> (M, D) latents.

`impala` is the reference of PLDM and EB-JEPA (arXiv 2502.14819, 2602.03604): 1,426,096 weights at
65 px and D = 512, LayerNorm included. Unlike the public code its head infers the flattened width,
so any image that survives three halvings works (PL10). `fast` is a three-layer strided convolution
for CPUs: the first layer already divides each side by four, so activations stay in cache.
`keypoint` reads places from feature maps: the fewest weights, for few data. `vit` is a vision
transformer (Dosovitskiy et al. 2021) of one frame, without dropout; its patches can be hidden,
which is what masked pre-training does (training/masked.py).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hjepa_lib.models.layers import Patches, Transformer

MIN_IMAGE = 16
SPREAD = 2.0  # keypoint coordinates of the image's edges: the dot's then have a spread near 1


class ResidualBlock(nn.Module):
    """relu(x + conv(relu(conv x))), no normalisation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.conv2(F.relu(self.conv1(x))))


class ImpalaEncoder(nn.Module):
    """IMPALA stacks of 16, 32, 32 channels, then Linear and LayerNorm."""

    CHANNELS = (16, 32, 32)

    def __init__(self, image_channels: int, image_size: int, latent_dim: int) -> None:
        super().__init__()
        stacks: list[nn.Module] = []
        width, side = image_channels, image_size
        for channels in self.CHANNELS:
            stacks += [
                nn.Conv2d(width, channels, 3, padding=1),
                nn.MaxPool2d(3, stride=2, padding=1),
                ResidualBlock(channels),
                ResidualBlock(channels),
            ]
            width, side = channels, (side + 1) // 2
        self.stacks = nn.Sequential(*stacks)
        self.head = nn.Linear(width * side * side, latent_dim)
        self.norm = nn.LayerNorm(latent_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stacks(x)).flatten(1)  # (M, 32 * 9 * 9) at 65 px
        return self.norm(self.head(x))


class FastEncoder(nn.Module):
    """Conv 7x7 stride 4, two convs 3x3 stride 2, then Linear: about 190k weights at width 64."""

    def __init__(self, image_channels: int, image_size: int, latent_dim: int, width: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(image_channels, width, 7, stride=4, padding=3),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        with torch.no_grad():
            features = self.convs(torch.zeros(1, image_channels, image_size, image_size))
        self.head = nn.Linear(features.numel(), latent_dim)
        self.norm = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.convs(x).flatten(1))


class KeypointEncoder(nn.Module):
    """Where something is instead of what is at each place: per feature map its expected place.

    Spatial softmax (Finn et al. 2016, arXiv 1509.06113): a place costs no weights of its own, so
    the dot is located where no training frame had it. Conv 7x7 stride 4, conv 3x3, conv 1x1, then
    one Linear over the 2 * width coordinates. A static part comes from a `fast` encoder of its own:
    walls are no points.
    """

    def __init__(
        self, image_channels: int, image_size: int, latent_dim: int, width: int, static: int = 0
    ) -> None:
        super().__init__()
        self.scene = FastEncoder(image_channels, image_size, static, width) if static else None
        self.convs = nn.Sequential(
            nn.Conv2d(image_channels, width, 7, stride=4, padding=3),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
        )
        side = (image_size - 1) // 4 + 1
        line = torch.linspace(-SPREAD, SPREAD, side)
        places = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)  # (side, side, 2) x, y
        self.register_buffer("places", places.reshape(-1, 2), persistent=False)
        self.head = nn.Linear(2 * width, latent_dim - static)
        self.norm = nn.Identity()

    def locate(self, x: Tensor) -> Tensor:
        """(M, C, Hpx, Wpx) -> (M, width, 2) expected (x, y), in [-2, 2] from edge to edge."""
        maps = self.convs(x).flatten(2)  # (M, width, side * side)
        with torch.autocast(x.device.type, enabled=False):  # bf16 would round places to 0.2 px
            return maps.float().softmax(-1) @ self.places

    def forward(self, x: Tensor) -> Tensor:
        moving = self.head(self.locate(x).flatten(1))
        return moving if self.scene is None else torch.cat([self.scene(x), moving], 1)


class VitEncoder(nn.Module):
    """Patches through `depth` transformer blocks, then one Linear over all tokens at their places.

    A class token that has to carry WHERE the dot is learns it far more slowly: after 400 updates of
    16 windows a ridge regression read the position to 12 px from it, and to 2.6 px from this head.
    """

    def __init__(
        self,
        image_channels: int,
        image_size: int,
        latent_dim: int,
        width: int,
        patch: int,
        depth: int,
        heads: int,
    ) -> None:
        super().__init__()
        self.patches = Patches(image_channels, image_size, patch, width)
        self.blocks = Transformer(width, depth, heads, max(1, width // heads), 2 * width)
        self.head = nn.Linear(self.patches.count * width, latent_dim)
        self.norm = nn.Identity()

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
        return self.head(self.blocks(tokens).flatten(1))


def build_encoder(
    name: str,
    image_channels: int,
    image_size: int,
    latent_dim: int,
    width: int,
    patch: int = 13,
    depth: int = 2,
    heads: int = 4,
    static: int = 0,
) -> nn.Module:
    """The registered encoder `name`; an image that does not fit it raises ValueError.

    Only `keypoint` reads the first `static` of the D components in another way than the rest.
    """
    if image_size < MIN_IMAGE:
        raise ValueError(f"images must be at least {MIN_IMAGE} px wide, got {image_size}")
    if name == "impala":
        return ImpalaEncoder(image_channels, image_size, latent_dim)
    if name == "fast":
        return FastEncoder(image_channels, image_size, latent_dim, width)
    if name == "keypoint":
        return KeypointEncoder(image_channels, image_size, latent_dim, width, static)
    if name == "vit":
        return VitEncoder(image_channels, image_size, latent_dim, width, patch, depth, heads)
    raise ValueError(f"unknown encoder {name!r}; known: impala, fast, keypoint, vit")
