"""Networks of the pixel models: encoders of frame stacks, action embedding, predictor, decoder.

Every encoder maps (B, L, C, Hpx, Wpx) floats to (B, D). Positions are learned and added once, to
the tokens that they belong to (F8); a CLS token stands at no place and has none.
"""

from collections import OrderedDict
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hjepa_lib.config.pixels import (
    DecoderConfig,
    PixelEncoderConfig,
    PixelJepaConfig,
    PixelsConfig,
)
from hjepa_lib.models import layers
from hjepa_lib.models.layers import count_parameters, mlp, sides
from hjepa_lib.pixels.transitions import PixelShapes, scaled

TEMPORAL_HEADS = 8
GAIN = 10.0  # of the maps whose places are read: one place, not the mean of all that is seen
LARGE = 512  # from this side on a linear layer starts from Xavier with gain 0.5


class Sees(nn.Module):
    """What takes uint8 states; it sees how they differ from the mean frame of training (X6)."""

    def __init__(self, config: PixelsConfig, shapes: PixelShapes) -> None:
        super().__init__()
        self.config, self.shapes = config, shapes
        self.register_buffer("background", torch.zeros(shapes.channels, *sides(shapes.image_size)))

    def train(self, mode: bool = True) -> "Sees":
        """What is frozen, such as a slow target, never drops anything out (F4)."""
        super().train(mode and count_parameters(self) > 0)
        for part in self.children():
            if [*part.parameters()] and not count_parameters(part):
                part.eval()
        return self

    def pixels(self, state: Tensor) -> Tensor:
        """uint8 (B, L, C, Hpx, Wpx) -> floats in [-1, 1]."""
        return self.shapes.pixels(state) - self.background


class Vit(nn.Module):
    """(M, C, Hpx, Wpx) -> tokens (M, 1 + N, D), the class token first; it keeps no mask (F4).

    Patches where `mask` (M, N) is True are hidden.
    """

    def __init__(
        self, config: PixelEncoderConfig, dim: int, planes: int, image_size: layers.Size,
        patch: int, depth: int, masked: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.patches = layers.Patches(planes, image_size, patch, dim)
        self.cls = nn.Parameter(torch.zeros(dim))
        # What stands where a patch is hidden.
        self.token = nn.Parameter(torch.zeros(dim)) if masked else None
        self.dropout = nn.Dropout(config.embedding_dropout)
        sizes = config.heads, config.head_dim, config.mlp_dim, config.dropout
        self.blocks = layers.Transformer(dim, depth, *sizes)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        tokens = self.patches(x, mask, self.token)
        return self.blocks(self.dropout(prepend(self.cls, tokens))).float()


class VitEncoder(nn.Module):
    """Spatial transformer per frame, temporal transformer over the frame tokens (MOD-2)."""

    def __init__(self, config: PixelEncoderConfig, shapes: PixelShapes) -> None:
        super().__init__()
        dim, size = config.latent_dim, shapes.image_size
        self.spatial = Vit(config, dim, shapes.channels, size, config.patch, config.depth)
        sizes = TEMPORAL_HEADS, max(1, dim // TEMPORAL_HEADS), 256, 0.1
        self.temporal = layers.Transformer(dim, config.temporal_depth, *sizes)
        self.frame_cls = nn.Parameter(torch.zeros(dim))
        self.frame_position = nn.Parameter(torch.zeros(shapes.stack, dim))
        # The last LayerNorm fixes the length of its output; the head gives the latent a scale.
        self.head = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        frames = self.spatial(x.flatten(0, 1))[:, 0].unflatten(0, x.shape[:2])  # (B, L, dim)
        return self.head(self.temporal(prepend(self.frame_cls, frames + self.frame_position))[:, 0])


def prepend(token: Tensor, tokens: Tensor) -> Tensor:
    """(dim,) before (M, N, dim): (M, 1 + N, dim)."""
    return torch.cat([token.to(tokens.dtype).expand(len(tokens), 1, -1), tokens], dim=1)


def cnn_encoder(config: PixelEncoderConfig, shapes: PixelShapes) -> nn.Sequential:
    """3 x 3 convolutions of stride 2 with doubling filters over the L * C planes (MOD-3)."""
    convs: list[nn.Module] = []
    width, (height, breadth) = shapes.channels * shapes.stack, sides(shapes.image_size)
    for index in range(config.cnn_layers):
        filters = config.cnn_filters * 2**index
        convs += [nn.Conv2d(width, filters, 3, stride=2, padding=1), nn.ReLU()]
        convs.append(nn.Dropout2d(config.cnn_dropout))
        width, height, breadth = filters, (height + 1) // 2, (breadth + 1) // 2
    head = mlp(width * height * breadth, config.latent_dim)
    parts = {"planes": nn.Flatten(1, 2), "convs": nn.Sequential(*convs), "flat": nn.Flatten()}
    return nn.Sequential(OrderedDict(parts, head=head))


def place_maps(config: PixelEncoderConfig, planes: int) -> nn.Sequential:
    """(B, planes, Hpx, Wpx) -> maps (B, places, Hpx / 2, Wpx / 2)."""
    first = nn.Conv2d(planes, config.cnn_filters, 5, stride=2, padding=2)
    return nn.Sequential(first, nn.ReLU(), nn.Conv2d(config.cnn_filters, config.places, 3, 1, 1))


def brightest(maps: Tensor) -> Tensor:
    """(B, places, H, W) -> (B, 2 places): where each map is brightest, x and y from -2 to 2.

    A spatial softmax (arXiv 1509.06113). ReLUs say of a dark thing what they say of a bright one,
    only less; a place has no brightness.
    """
    down, across = (torch.linspace(-2, 2, side, device=maps.device) for side in maps.shape[2:])
    grid = torch.stack(torch.meshgrid(across, down, indexing="xy"), -1)  # (H, W, 2) x, y
    with layers.full_precision(maps):  # bf16 would round places
        return ((GAIN * maps.float().flatten(2)).softmax(-1) @ grid.reshape(-1, 2)).flatten(1)


class PlacesEncoder(nn.Module):
    """Where maps are brightest, then the numbers of a `cnn_encoder`."""

    def __init__(self, config: PixelEncoderConfig, shapes: PixelShapes) -> None:
        super().__init__()
        rest = config.latent_dim - 2 * config.places
        self.net = cnn_encoder(replace(config, latent_dim=rest), shapes)
        self.maps = place_maps(config, shapes.channels * shapes.stack)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([brightest(self.maps(x.flatten(1, 2))), self.net(x)], dim=-1)


def mlp_encoder(config: PixelEncoderConfig, shapes: PixelShapes) -> nn.Sequential:
    """All pixels through hidden layers; without any it is one linear map (MOD-4)."""
    height, width = sides(shapes.image_size)
    widths = [shapes.stack * shapes.channels * height * width]
    widths += [config.mlp_hidden] * config.mlp_layers
    net = mlp(*widths, config.latent_dim, dropout=config.mlp_dropout)
    return nn.Sequential(OrderedDict(flat=nn.Flatten(), layers=net))


ENCODERS = {"vit": VitEncoder, "cnn": cnn_encoder, "mlp": mlp_encoder, "places": PlacesEncoder}
"""By `pixels.encoder.kind`, for every model (MOD-1)."""


def action_embedding(shapes: PixelShapes, dim: int) -> nn.Sequential:
    """(...,) action numbers or (..., A) continuous actions -> (..., dim) (MOD-5)."""
    kind = nn.Embedding if shapes.action_kind == "discrete" else nn.Linear
    return nn.Sequential(OrderedDict(table=kind(shapes.action_dim, dim)))


class LatentPredictor(nn.Module):
    """z + net(z, e): (B, D) latent and (B, E) embedded action -> (B, D) next, at first z (X2)."""

    def __init__(self, config: PixelJepaConfig, latent_dim: int, action_dim: int) -> None:
        super().__init__()
        self.form = config.predictor
        if config.predictor == "mlp":
            widths = (latent_dim + action_dim, *config.hidden, latent_dim)
            self.net = mlp(*widths, activation=nn.GELU, dropout=config.dropout)
            return
        # Two tokens, state and action; a block of 4 heads per entry of `hidden`, its MLP's width.
        self.action = nn.Linear(action_dim, latent_dim)
        self.position = nn.Parameter(torch.zeros(2, latent_dim))
        self.net = nn.Sequential(*(
            layers.Block(latent_dim, 4, max(1, latent_dim // 4), width, config.dropout)
            for width in config.hidden
        ), nn.Linear(latent_dim, latent_dim))  # fmt: skip

    def first_weights(self) -> None:
        """It begins as a copy of the latent, nearly: gradient reaches all its parts."""
        nn.init.normal_(self.net[-1].weight, std=1e-3)

    def forward(self, latent: Tensor, action: Tensor) -> Tensor:
        if self.form == "mlp":
            return latent + self.net(torch.cat([latent, action], dim=-1))
        x = torch.stack([latent, self.action(action)], dim=1) + self.position  # (B, 2, D)
        return latent + self.net(x)[:, 0]


class Look(nn.Module):
    """Cross-attention of x (B, N, dim) to one memory token (B, 1, dim) and a zero key and value.

    Over a single token a softmax is always 1, and query and key never learn (F9); beside a zero key
    the weight is sigmoid(q . k / sqrt(d)): look, or look away.
    """

    def __init__(self, dim: int, heads: int, head_dim: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, heads * head_dim, bias=False)
        self.key_value = nn.Linear(dim, 2 * heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        q = self.query(x).unflatten(-1, (self.heads, -1))  # (B, N, heads, head_dim)
        k, v = self.key_value(memory).unflatten(-1, (2, self.heads, -1)).unbind(2)
        weight = torch.sigmoid((q * k).sum(dim=-1, keepdim=True) / q.shape[-1] ** 0.5)
        return self.dropout(self.out((weight * v).flatten(2)))


class DecoderBlock(nn.Module):
    """Self-attention among the patches, a look at the memory, MLP; each added to its input."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        sizes = config.dim, config.heads, config.head_dim, config.dropout
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(config.dim) for _ in range(3))
        self.attention, self.look = layers.Attention(*sizes), Look(*sizes)
        self.mlp = layers.feed_forward(config.dim, config.mlp_dim, config.dropout)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        x = x + self.look(self.norm2(x), memory)
        return x + self.mlp(self.norm3(x))


class PatchDecoder(nn.Module):
    """One latent (B, input_dim) as memory, one learned query per patch -> (B, C, Hpx, Wpx) (MOD-6).

    Drawn is what differs from the mean frame of training, in units of [0, 1], not clipped.
    """

    name = "decoder"

    def __init__(self, config: DecoderConfig, input_dim: int, shapes: PixelShapes) -> None:
        super().__init__()
        self.config, self.shapes = config, shapes
        rows, columns = layers.patch_grid(shapes.image_size, config.patch)
        self.memory = nn.Linear(input_dim, config.dim)
        self.memory_norm = nn.LayerNorm(config.dim)
        self.query = nn.Parameter(torch.zeros(rows * columns, config.dim))
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.dim)
        self.pixels = nn.Linear(config.dim, shapes.channels * config.patch**2)
        self.register_buffer("background", torch.zeros(shapes.channels, *sides(shapes.image_size)))

    def first_weights(self) -> None:
        """Patches begin different from each other, and the frame nearly the mean frame."""
        nn.init.normal_(self.query, std=1.0)
        nn.init.normal_(self.pixels.weight, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        memory = self.memory_norm(self.memory(x))[:, None]  # (B, 1, dim)
        tokens = self.query.expand(len(x), -1, -1)
        for block in self.blocks:
            tokens = block(tokens, memory)
        patches = self.pixels(self.norm(tokens))  # (B, N, C * patch * patch), row by row
        size, patch = sides(self.shapes.image_size), self.config.patch
        return self.background + F.fold(patches.transpose(1, 2), size, patch, stride=patch)

    def loss(self, batch: tuple[Tensor, Tensor], _: object = None) -> tuple[Tensor, dict]:
        """MSE of (latents, uint8 frames), alone without a model (MOD-10)."""
        latent, frame = batch
        error = F.mse_loss(self(latent).float(), scaled(frame))
        return error, {"mse_reconstruction": error.item()}


@torch.no_grad()
def initialise(model: nn.Module) -> None:
    """Draw all weights of `model` anew from torch's generator (MOD-13).

    A module with `first_weights` has the last word on its own.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear) and max(module.weight.shape) >= LARGE:
            nn.init.xavier_uniform_(module.weight, gain=0.5)
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.01)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
        else:
            for token in module.parameters(recurse=False):
                nn.init.normal_(token, std=0.02)
            continue
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)
    for module in model.modules():
        if hasattr(module, "first_weights"):
            module.first_weights()


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Trainable weights by part, and `own` ones; they sum to the total."""
    counts = {name: count_parameters(part) for name, part in model.named_children()}
    own = sum(p.numel() for p in model.parameters(recurse=False) if p.requires_grad)
    return {name: count for name, count in (counts | {"own": own}).items() if count}
