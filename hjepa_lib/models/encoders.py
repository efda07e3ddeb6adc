"""The networks of level 1.

Encoders: (M, C, Hpx, Wpx) normalised pixels -> (M, D). Predictors: latent (M, D), normalised action
(M, A) -> (M, D); all but the GRU add a displacement and leave the `static_dim` first components.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hjepa_lib.config import ConfigError, Level1Config
from hjepa_lib.models.layers import (
    Patches,
    Size,
    Transformer,
    convolutions,
    full_precision,
    mlp,
    sides,
)
from hjepa_lib.models.local import LocalPredictor, PlaceEncoder

MIN_IMAGE = 16  # px
DEPTH, HEADS = 2, 4  # of transformers
SPREAD = 2.0  # keypoint coordinates of the image's edges: the dot's then have a spread near 1


def output(config: Level1Config, count: int, width: int = 0) -> tuple[nn.Linear, nn.Module]:
    """`head` of `count` features, and `norm`: a LayerNorm of `impala`, as in PLDM and EB-JEPA, and
    where the predictor is a GRU, whose state could not reach another scale."""
    normed = config.encoder == "impala" or config.predictor == "gru"
    norm = nn.LayerNorm(config.latent_dim) if normed else nn.Identity()
    return nn.Linear(count, width or config.latent_dim), norm


@torch.no_grad()
def features(net: nn.Module, channels: int, image_size: Size) -> int:
    """Numbers that `net` makes of one image (PL10)."""
    return net(torch.zeros(1, channels, *sides(image_size))).numel()


class ResidualBlock(nn.Module):
    """relu(x + conv(relu(conv x))), no normalisation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.conv2(F.relu(self.conv1(x))))


class ImpalaEncoder(nn.Module):
    """IMPALA stacks, as in PLDM and EB-JEPA (arXiv 2502.14819, 2602.03604)."""

    def __init__(self, config: Level1Config, channels: int, image_size: Size) -> None:
        super().__init__()
        stacks: list[nn.Module] = []
        for before, after in pairwise((channels, 16, 32, 32)):
            stacks += [nn.Conv2d(before, after, 3, padding=1), nn.MaxPool2d(3, 2, padding=1)]
            stacks += [ResidualBlock(after), ResidualBlock(after)]
        self.stacks = nn.Sequential(*stacks)
        self.head, self.norm = output(config, features(self.stacks, channels, image_size))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.head(F.relu(self.stacks(x)).flatten(1)))


class FastEncoder(nn.Module):
    """Three convolutions whose activations stay in a CPU's cache."""

    def __init__(
        self, config: Level1Config, channels: int, image_size: Size, latent_dim: int = 0
    ) -> None:
        super().__init__()
        self.convs = convolutions(channels, config.width, (7, 4), (3, 2), (3, 2))
        count = features(self.convs, channels, image_size)
        self.head, self.norm = output(config, count, latent_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.head(self.convs(x).flatten(1)))


class KeypointEncoder(nn.Module):
    """Expected place of each feature map: spatial softmax (arXiv 1509.06113).

    Walls are no points: a static part comes from a `fast` encoder.
    """

    def __init__(self, config: Level1Config, channels: int, image_size: Size) -> None:
        super().__init__()
        width, static = config.width, config.static_dim
        self.scene = FastEncoder(config, channels, image_size, static) if static else None
        convs = convolutions(channels, width, (7, 4), (3, 1))
        self.convs = nn.Sequential(*convs, nn.Conv2d(width, width, 1))
        down, across = (
            torch.linspace(-SPREAD, SPREAD, (side - 1) // 4 + 1) for side in sides(image_size)
        )
        places = torch.stack(torch.meshgrid(across, down, indexing="xy"), -1)  # (H, W, 2) x, y
        self.register_buffer("places", places.reshape(-1, 2), persistent=False)
        self.head, self.norm = output(config, 2 * width, config.latent_dim - static)

    def locate(self, x: Tensor) -> Tensor:
        """(M, C, Hpx, Wpx) -> (M, width, 2) expected (x, y), in [-2, 2] from edge to edge."""
        maps = self.convs(x).flatten(2)  # (M, width, cells)
        with full_precision(x):  # bf16 would round places to 0.2 px
            return maps.float().softmax(-1) @ self.places

    def forward(self, x: Tensor) -> Tensor:
        moving = self.head(self.locate(x).flatten(1))
        return self.norm(moving if self.scene is None else torch.cat([self.scene(x), moving], 1))


class VitEncoder(nn.Module):
    """Vision transformer (arXiv 2010.11929), then one Linear over all tokens.

    A class token learns far more slowly WHERE the dot is.
    """

    def __init__(self, config: Level1Config, channels: int, image_size: Size) -> None:
        super().__init__()
        width = config.width
        self.patches = Patches(channels, image_size, config.patch, width)
        self.blocks = Transformer(width, DEPTH, HEADS, max(1, width // HEADS), 2 * width)
        self.head, self.norm = output(config, self.patches.count * width)

    def forward(
        self, x: Tensor, hidden: Tensor | None = None, token: Tensor | None = None
    ) -> Tensor:
        tokens = self.patches(x, hidden, token)  # (M, N, width)
        return self.norm(self.head(self.blocks(tokens).flatten(1)))


ENCODERS: dict[str, type[nn.Module]] = {
    "impala": ImpalaEncoder, "fast": FastEncoder, "keypoint": KeypointEncoder, "vit": VitEncoder,
    "place": PlaceEncoder,
}  # fmt: skip


def build_encoder(config: Level1Config, channels: int, image_size: Size) -> nn.Module:
    """ConfigError for images that are too small."""
    if min(sides(image_size)) < MIN_IMAGE:
        raise ConfigError(f"images must be at least {MIN_IMAGE} px wide, got {image_size}")
    return ENCODERS[config.encoder](config, channels, image_size)


def displace(latent: Tensor, step: Tensor) -> Tensor:
    """latent (M, D) plus step (M, D - S): the static S stay."""
    static = latent.shape[-1] - step.shape[-1]
    return latent + (F.pad(step, (static, 0)) if static else step)


class GruPredictor(nn.Module):
    """PLDM's h' = LN(GRU(a, h)): the state IS the latent, LN the encoder's own."""

    def __init__(self, config: Level1Config, action_dim: int, norm: nn.Module) -> None:
        super().__init__()
        self.cell = nn.GRUCell(action_dim, config.latent_dim)
        self.norm = norm

    def forward(self, latent: Tensor, action: Tensor) -> Tensor:
        return self.norm(self.cell(action, latent))


class MlpPredictor(nn.Module):
    """z' = z + MLP([z, a])."""

    def __init__(self, config: Level1Config, action_dim: int, norm: nn.Module) -> None:
        super().__init__()
        inner = [config.hidden] * config.layers
        dim = config.latent_dim
        self.net = mlp(dim + action_dim, *inner, dim - config.static_dim)

    def forward(self, latent: Tensor, action: Tensor) -> Tensor:
        return displace(latent, self.net(torch.cat([latent, action.to(latent.dtype)], dim=-1)))


class TransformerPredictor(nn.Module):
    """z' = z + Linear(blocks([z, a])[0]), as seed 004's transition model."""

    def __init__(self, config: Level1Config, action_dim: int, norm: nn.Module) -> None:
        super().__init__()
        width = config.hidden
        # Embeddings of their own tell the tokens apart without positions.
        self.state = nn.Linear(config.latent_dim, width)
        self.action = nn.Linear(action_dim, width)
        self.blocks = Transformer(width, DEPTH, HEADS, max(1, width // HEADS), 2 * width)
        self.head = nn.Linear(width, config.latent_dim - config.static_dim)

    def forward(self, latent: Tensor, action: Tensor) -> Tensor:
        tokens = [self.state(latent), self.action(action.to(latent.dtype))]
        mixed = self.blocks(torch.stack(tokens, 1))  # (M, 2, width)
        return displace(latent, self.head(mixed[:, 0]))


PREDICTORS: dict[str, type[nn.Module]] = {
    "gru": GruPredictor, "mlp": MlpPredictor, "transformer": TransformerPredictor,
    "local": LocalPredictor,
}  # fmt: skip
