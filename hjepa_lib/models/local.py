"""A local world model: latents are places in the picture, and steps look at what lies around them.

A latent is z = (p_t, p_t - p_{t-1}, ...), the place of what the actions move, from the centre in
quarters of the frame's longer side, and as many earlier moves as frames are stacked. The layout is
not in it: a predictor reads a patch of a map of the frame (a `Scene`) around p_t.

    p_{t+1} - p_t = F [z's moves, a_t] + MLP([z's moves, a_t, patch of the map around p_t])
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hjepa_lib.config import ConfigError, Level1Config
from hjepa_lib.models.layers import Size, convolutions, full_precision, mlp, sides

GAIN = 10.0  # of the inverse dynamics' weights: the sign of an axis is found within some updates
REACH = 4  # px around the place, to each side
MAPS = 4  # features of a pixel
AROUND = 3  # cells of level 2's map around the place, to each side
CELLS = 8  # features of a cell
BACKGROUND = 0.9  # of the uniform attention: what is below it is not part of the place
ATTEMPTS = 8  # maps that look for the place, of which about every fourth may never find it


class Scene(NamedTuple):
    """Maps of frames, and which of them belongs to each latent."""

    maps: Tensor  # (K, Hpx, Wpx, F)
    rows: Tensor  # (M,) int64 in [0, K)
    world: Any = None  # of K trials, for planning/truth.py alone
    ahead: Tensor | None = None  # (K, T + 1, 2) places of what moves by itself, from now on

    def pick(self, index: Tensor) -> "Scene":
        """Those of some of the latents, as often as they are named."""
        return self._replace(rows=self.rows[index])

    def repeat(self, times: int) -> "Scene":
        """Each latent's one `times` in a row."""
        return self._replace(rows=self.rows.repeat_interleave(times))


class Picture(nn.Module):
    """Places of a frame of (height, width) px, in latents and in pixels."""

    def __init__(self, image_size: Size) -> None:
        super().__init__()
        self.size = height, width = sides(image_size)
        self.unit = max(height, width) / 4  # px
        self.register_buffer("centre", torch.tensor([width - 1, height - 1]) / 2, persistent=False)

    def pixels(self, latents: Tensor) -> Tensor:
        """(..., D) -> (..., 2) px, x and y."""
        return latents[..., :2] * self.unit + self.centre

    def latents(self, pixels: Tensor) -> Tensor:
        """(..., 2) px -> (..., 2)."""
        return (pixels - self.centre) / self.unit


class PlaceEncoder(nn.Module):
    """Where the attention lies: one spatial softmax (arXiv 1509.06113) without its background.

    One map, so that a place is one of the picture: a mixture could be any linear function of it.
    Several learn alone; the one of the lowest `error` (K,), a running mean, is used.
    """

    def __init__(self, config: Level1Config, channels: int, image_size: Size) -> None:
        super().__init__()
        self.stacked, odd = divmod(config.latent_dim, 2)
        if odd or channels % self.stacked:
            what = f"not {config.latent_dim} for {channels} channels"
            raise ConfigError(f"level1.latent_dim must be 2 for each stacked frame, {what}")
        width = config.width
        self.convs = convolutions(channels // self.stacked, width, (5, 2), (3, 1))
        self.maps = nn.Conv2d(width, ATTEMPTS, 1)
        self.register_buffer("error", torch.zeros(ATTEMPTS))
        self.register_buffer("offset", torch.zeros(2))  # of the middle of what is seen
        self.picture, self.norm = Picture(image_size), nn.Identity()
        down, across = (torch.arange(0, side, 2.0) for side in sides(image_size))
        places = torch.stack(torch.meshgrid(across, down, indexing="xy"), -1).reshape(-1, 2)
        self.register_buffer("places", self.picture.latents(places), persistent=False)

    @property
    def kept(self) -> Tensor:
        """() int64: the attempt that is used."""
        return self.error.argmin()

    def forward(self, x: Tensor) -> Tensor:
        """(M, C, Hpx, Wpx) -> (M, D)."""
        kept = self.kept[None]
        found = self.attempts(x, self.maps.weight[kept], self.maps.bias[kept])[:, 0]
        return torch.cat([found[:, :2] + self.offset, found[:, 2:]], 1)

    def attempts(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """(M, C, Hpx, Wpx) -> (M, K, D) of the maps with these weights."""
        seen = self.convs(x.reshape(-1, x.shape[1] // self.stacked, *x.shape[2:]))
        maps = F.conv2d(seen, weight, bias).flatten(2)
        with full_precision(x):
            attention = maps.float().softmax(-1)
            # What little each far pixel gets would pull the place to the centre of the picture.
            attention = F.relu(attention - BACKGROUND / attention.shape[-1])
            place = attention / attention.sum(-1, keepdim=True).clamp(min=1e-12) @ self.places
        place = place.unflatten(0, (-1, self.stacked)).flip(1).transpose(1, 2)  # the newest first
        moves = (place[:, :, :-1] - place[:, :, 1:]).flatten(2)
        return torch.cat([place[:, :, 0], moves], 2)


class SceneMap(nn.Module):
    """`MAPS` features of every pixel: (M, C, Hpx, Wpx) -> (M, Hpx, Wpx, F)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = 2 * MAPS
        first = nn.Conv2d(channels, inner, 3, padding=1)
        self.net = nn.Sequential(first, nn.ReLU(), nn.Conv2d(inner, MAPS, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).float().permute(0, 2, 3, 1).contiguous()


class Surroundings(nn.Module):
    """What a level above sees: coarse cells of level 1's map around a place.

    They are `2 ** halvings` px wide: about half of a macro-step of `steps` steps.
    """

    def __init__(self, steps: int, picture: Picture) -> None:
        super().__init__()
        self.picture, self.halvings = picture, max(1, round(math.log2(max(2, steps) / 2)))
        self.width = CELLS * (2 * AROUND + 1) ** 2
        self.convs = convolutions(MAPS, CELLS, *[(3, 2)] * self.halvings)

    def cells(self, scene: Scene) -> Scene:
        """The same with cells for pixels."""
        found = self.convs(scene.maps.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return scene._replace(maps=found.float().contiguous())

    def forward(self, latent: Tensor, cells: Scene) -> Tensor:
        """(M, D) -> (M, D - 2 + width): earlier moves, and the cells around each place."""
        places = self.picture.pixels(latent) / 2**self.halvings
        return torch.cat([latent[:, 2:], read_patches(cells, places, AROUND)], -1)


def read_patches(scene: Scene, pixels: Tensor, reach: int) -> Tensor:
    """The map around `pixels` (M, 2), every px within `reach`, bilinear: (M, (2 reach + 1)^2 F)."""
    height, width, features = scene.maps.shape[1:]
    corner = pixels.detach().floor()
    x, y = (pixels - corner)[:, :, None, None, None].unbind(1)  # (M, 1, 1, 1) in [0, 1)
    around = torch.arange(-reach, reach + 2, device=pixels.device)
    column, row = (
        (one[:, None].long() + around).clamp(0, side - 1)  # the border goes on outside
        for one, side in zip(corner.unbind(1), (width, height), strict=True)
    )
    index = (scene.rows[:, None, None] * height + row[:, :, None]) * width + column[:, None, :]
    found = F.embedding(index, scene.maps.reshape(-1, features))  # (M, n + 1, n + 1, F)
    found = torch.lerp(found[:, :, :-1], found[:, :, 1:], x)
    return torch.lerp(found[:, :-1], found[:, 1:], y).flatten(1)


class LocalPredictor(nn.Module):
    """One step of the place, by a patch of the scene; and where the place can be.

    `free` is the linear part F, `visited` a classifier of patches.
    """

    def __init__(self, config: Level1Config, action_dim: int, picture: Picture) -> None:
        super().__init__()
        self.picture = picture
        seen = MAPS * (2 * REACH + 1) ** 2
        moves = config.latent_dim - 2 + action_dim
        self.free = nn.Linear(moves, 2, bias=False)
        self.net = mlp(moves + seen, *[config.hidden] * config.layers, 2)
        self.visited = mlp(seen, 64, 64, 1)

    def read(self, latent: Tensor, scene: Scene) -> Tensor:
        """(M, D) -> (M, seen): the patch around each place."""
        return read_patches(scene, self.picture.pixels(latent), REACH)

    def forward(self, latent: Tensor, action: Tensor, scene: Scene) -> Tensor:
        moves = torch.cat([latent[:, 2:], action.to(latent.dtype)], -1)
        step = self.free(moves) + self.net(torch.cat([moves, self.read(latent, scene)], -1))
        before = latent[:, 2:]
        newest = step if before.shape[1] else step[:, :0]
        return torch.cat([latent[:, :2] + step, newest, before[:, :-2]], -1).float()

    def visit(self, latent: Tensor, scene: Scene) -> Tensor:
        """(M,) log-odds that a place like this was recorded rather than drawn anywhere."""
        return self.visited(self.read(latent, scene).detach())[:, 0]


class Displacement(nn.Module):
    """Inverse dynamics of each of K attempts: linear, [z's moves, the next] px -> action."""

    def __init__(self, latent_dim: int, action_dim: int, unit: float) -> None:
        super().__init__()
        self.unit = unit
        self.weight = nn.Parameter(torch.zeros(ATTEMPTS, action_dim, latent_dim))

    def forward(self, latent: Tensor, later: Tensor, kept: Tensor | None = None) -> Tensor:
        """(..., K, D) twice -> (..., K, A); (..., D) twice -> (..., A) of the attempt `kept`."""
        moves = torch.cat([latent[..., 2:], later[..., :2] - latent[..., :2]], -1) * self.unit
        weight = self.matrix(slice(None) if kept is None else kept)
        return (weight @ moves[..., None])[..., 0]

    def matrix(self, kept: Tensor | slice) -> Tensor:
        """(A, D) of an attempt: normalised action of px, earlier moves first."""
        return GAIN * self.weight[kept]
