"""Two-stage world model in the style of V-JEPA 2 (arXiv 2506.09985), at the size of 64 px images.

Stage 1 hides a share of the patches from the online encoder f, and a predictor g names the latent
that the EMA target f' gives the whole state s (m: exactly int(ratio * N) hidden patches):

    L1 = |g(f(s, m)) - f'(s)|           f' <- decay f' + (1 - decay) f after each update

Stage 2 freezes f and trains a transformer over z_t = f(s_t), causal in time. With T steps in a
window, n = rollout_steps and w = teacher_forcing its loss is

    TF = mean |p(z_0..z_t, a_0..a_t) - z_{t+1}|               every t, true latents in
    RO = mean |zhat_{t+1} - z_{t+1}|, t >= T - n              the last n steps, predictions fed back
    L2 = w TF + (1 - w) RO

A mask is an argument of the call and never a state of the encoder (F4).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hjepa_lib.config.fields import ConfigError
from hjepa_lib.config.pixels import PixelsConfig, Stage2Config
from hjepa_lib.models.layers import Block, Past, draw_masks, mlp, patch_grid, update_ema
from hjepa_lib.pixels.networks import ActionEmbedding, initialise
from hjepa_lib.pixels.training import CHUNK, budget
from hjepa_lib.pixels.transitions import PixelShapes, Transitions
from hjepa_lib.training.batches import draw_batch, mean_terms, seeded_noise
from hjepa_lib.training.loop import Fit, Task

TOKEN_WIDTH = 64  # of the `projected` mask token
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": F.l1_loss, "mse": F.mse_loss, "smooth_l1": F.smooth_l1_loss,
}  # fmt: skip


class ByteDropout(nn.Module):
    """`nn.Dropout(p)` for CPUs; draws from torch's global generator, as that does."""

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"a dropout share must lie in [0, 1), got {p}")
        self.p = p
        self.limit = min(round(256 * p), 255)  # bytes below it are dropped

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.limit):
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p, training=True)
        words = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        keep = words.view(torch.uint8)[: x.numel()].view(x.shape) >= self.limit
        return x * keep.to(x.dtype).mul_(256 / (256 - self.limit))

    def extra_repr(self) -> str:
        return f"p={self.p}"


def use_byte_dropout(module: nn.Module) -> nn.Module:
    """Replace every `nn.Dropout` inside `module` by `ByteDropout`; returns `module`."""
    for name, child in module.named_children():
        if isinstance(child, nn.Dropout):
            setattr(module, name, ByteDropout(child.p))
        else:
            use_byte_dropout(child)
    return module


class MaskedViT(nn.Module):
    """(B, L, C, Hpx, Wpx) in [0, 1] -> CLS latent (B, D); a patch has L * C channels."""

    def __init__(self, config: PixelsConfig, shapes: PixelShapes) -> None:
        super().__init__()
        stage, own = config.vjepa2.stage1, config.encoder
        dim, planes = own.latent_dim, shapes.stack * shapes.channels
        rows, columns = patch_grid(shapes.image_size, stage.patch)
        self.patches = rows * columns
        self.embed = nn.Conv2d(planes, dim, stage.patch, stride=stage.patch)
        self.cls = nn.Parameter(torch.zeros(dim))
        self.position = nn.Parameter(torch.zeros(self.patches + 1, dim))  # CLS first
        projected = stage.mask_token == "projected"
        self.token = nn.Parameter(torch.zeros(TOKEN_WIDTH if projected else dim))
        self.project = nn.Linear(TOKEN_WIDTH, dim) if projected else nn.Identity()
        self.dropout = ByteDropout(own.embedding_dropout)
        self.blocks = nn.ModuleList(
            Block(dim, own.heads, own.head_dim, own.mlp_dim, own.dropout)
            for _ in range(stage.depth)
        )
        use_byte_dropout(self.blocks)
        initialise(self)

    def tokens(self, pixels: Tensor, mask: Tensor | None = None) -> Tensor:
        """Patch embeddings (B, N, D) before positions; hidden ones replaced by the token."""
        patches = self.embed(pixels.flatten(1, 2)).flatten(2).transpose(1, 2)
        if mask is None:
            return patches
        return torch.where(mask[..., None], self.project(self.token).to(patches.dtype), patches)

    def forward(self, pixels: Tensor, mask: Tensor | None = None, patches: bool = False) -> Tensor:
        """(B, D), or with `patches` all tokens (B, 1 + N, D), CLS first; `mask` (B, N) bool."""
        x = self.tokens(pixels, mask)
        x = torch.cat([self.cls.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
        x = self.dropout(x + self.position)  # positions once, also under hidden patches (F8)
        *body, last = self.blocks
        for block in body:
            x = block(x)
        x, _ = last.extend(x, keep=None if patches else 1)
        return x.float() if patches else x[:, 0].float()


class MaskedPrediction(nn.Module):
    """Stage 1: online encoder, its EMA target, predictor."""

    def __init__(self, config: PixelsConfig, shapes: PixelShapes) -> None:
        super().__init__()
        self.config, self.shapes, self.stage = config, shapes, config.vjepa2.stage1
        self.online = MaskedViT(config, shapes)
        self.target = copy.deepcopy(self.online).requires_grad_(False).eval()
        dim = config.encoder.latent_dim
        self.predictor = mlp(dim, *self.stage.hidden, dim, activation=nn.GELU)
        initialise(self.predictor)

    def train(self, mode: bool = True) -> MaskedPrediction:
        super().train(mode)
        self.target.eval()  # targets are never dropped out
        return self

    def encode(self, state: Tensor) -> Tensor:
        """uint8 (B, L, C, Hpx, Wpx) -> (B, D), from the whole, unmasked state."""
        return self.online(self.shapes.pixels(state))

    def predict(self, state: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D) each: the latent named from the visible patches, and the target's."""
        pixels = self.shapes.pixels(state)
        with torch.no_grad():
            whole = self.target(pixels)
        return self.predictor(self.online(pixels, mask)).float(), whole

    def loss(self, state: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Error of the predicted latent; with `patch_loss` also of the hidden patches' tokens."""
        measure, weight = LOSSES[self.stage.loss], self.stage.patch_loss
        if not weight:
            total = measure(*self.predict(state, mask))
            return total, {"latent": total.item()}
        pixels = self.shapes.pixels(state)
        with torch.no_grad():
            whole = self.target(pixels, patches=True)
        named = self.predictor(self.online(pixels, mask, patches=True)).float()
        latent = measure(named[:, 0], whole[:, 0])
        if not mask.any():
            return latent, {"latent": latent.item(), "patches": 0.0}
        hidden = measure(named[:, 1:][mask], whole[:, 1:][mask])
        return latent + weight * hidden, {"latent": latent.item(), "patches": hidden.item()}

    def after_update(self) -> None:
        """The target follows the online encoder."""
        update_ema(self.target, self.online, self.stage.ema_decay)


class WorldModel(nn.Module):
    """Stage 2: from (z_0, a_0) .. (z_t, a_t) the next latent z_{t+1}, for every t at once.

    Same size as the seed's; its last LayerNorm stood behind the output layer and so fixed the
    length of every prediction, here it stands before it. The first one is on the latents.
    """

    def __init__(self, config: PixelsConfig, shapes: PixelShapes) -> None:
        super().__init__()
        stage, dim = config.vjepa2.stage2, config.encoder.latent_dim
        width = dim + config.action_dim
        self.length = config.data.sequence
        self.embedding = ActionEmbedding(shapes.action_kind, shapes.action_dim, config.action_dim)
        self.norm_in, self.norm_out = nn.LayerNorm(dim), nn.LayerNorm(width)
        self.join = nn.Linear(width, width)
        self.position = nn.Parameter(torch.zeros(self.length, width))
        self.blocks = nn.ModuleList(
            Block(width, stage.heads, stage.head_dim, stage.mlp_dim, stage.dropout)
            for _ in range(stage.depth)
        )
        use_byte_dropout(self.blocks)
        self.out = nn.Linear(width, dim)
        initialise(self)
        self.change = stage.output == "change"
        if self.change:
            nn.init.zeros_(self.out.weight)

    def forward(self, latents: Tensor, actions: Tensor) -> Tensor:
        """(B, T, D), actions (B, T) or (B, T, A) -> predictions of z_1 .. z_T, (B, T, D)."""
        return self.extend(latents, actions, [])[0]

    def extend(
        self, latents: Tensor, actions: Tensor, past: list[Past]
    ) -> tuple[Tensor, list[Past]]:
        """`forward` after the steps in `past` ([]: none); one step at a time once there are any."""
        start, steps = past[0][0].shape[2] if past else 0, latents.shape[1]
        if start + steps > self.length:
            raise ConfigError(
                f"the world model has seen windows of {self.length} steps, not of {start + steps}; "
                "ask for a shorter roll-out, or raise pixels.data.sequence and train again"
            )
        if past and steps != 1:
            raise ValueError(f"a started sequence goes on one step at a time, got {steps} steps")
        x = self.join(torch.cat([self.norm_in(latents), self.embedding(actions)], dim=-1))
        x = x + self.position[start : start + steps]
        kept = []
        for index, block in enumerate(self.blocks):
            x, pair = block.extend(x, past[index] if past else None, causal=not past)
            kept.append(pair)
        named = self.out(self.norm_out(x)).float()
        return (latents + named if self.change else named), kept

    def rollout(self, z0: Tensor, actions: Tensor, n: int) -> Tensor:
        """z0 (B, D), actions (B, >= n, ...) -> z_1 .. z_n (B, n, D), each fed back as input.

        With z0 (B, T, D) the first T steps are given and z_T .. z_{T+n-1} come back.
        """
        given = z0 if z0.ndim == 3 else z0[:, None]
        start = given.shape[1]
        predictions, past = self.extend(given, actions[:, :start], [])
        imagined = [predictions[:, -1]]
        for t in range(start, start + n - 1):
            step, past = self.extend(imagined[-1][:, None], actions[:, t : t + 1], past)
            imagined.append(step[:, 0])
        return torch.stack(imagined, dim=1)


HELD_OUT = 256  # states or windows of one validation at most: it takes as long as a few updates


class LatentWindows(NamedTuple):
    """Frozen latents of M transitions and where windows of T of them start (VJ-7)."""

    now: Tensor  # (M, D)
    then: Tensor  # (M, D)
    action: Tensor  # (M,) or (M, A)
    first: Tensor  # (W,) rows

    def windows(self, index: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
        """z_t (B, T, D), actions (B, T, ...), z_{t+1} (B, T, D) of the windows `index` (B,)."""
        rows = self.first[index.to(self.first.device), None]
        rows = rows + torch.arange(length, device=rows.device)
        return self.now[rows], self.action[rows], self.then[rows]


@torch.no_grad()
def encode_states(model: Any, data: Transitions, length: int) -> LatentWindows:
    """All latents of `data` from `model.encode`: unmasked, without dropout or gradient (F4).

    s_{t+1} of a row is s_t of the next row of its episode, so only last rows need a second call.
    """
    model.eval()
    device = next(model.parameters()).device

    def encode(rows: Tensor, part: str) -> Tensor:
        pieces = [getattr(data.batch(index), part) for index in rows.split(CHUNK)]
        return torch.cat([model.encode(piece.to(device)) for piece in pieces])

    now = encode(torch.arange(len(data)), "state")
    last = torch.ones(len(data), dtype=torch.bool)
    last[:-1] = data.episode[1:] != data.episode[:-1]
    then = now.roll(-1, dims=0)
    then[last.to(device)] = encode(last.nonzero()[:, 0], "next_state")
    first = data.windows(length).to(device)
    return LatentWindows(now, then, data.action.to(device), first)


def fit_stage1(
    model: MaskedPrediction,
    train: Transitions,
    validation: Transitions | None,
    config: PixelsConfig,
    *,
    seed: int,
    precision: str = "fp32",
    folder: Path | None = None,
) -> Fit:
    """Iterate to train online encoder and predictor in place; the target follows them."""
    stage, device = config.vjepa2.stage1, next(model.parameters()).device

    def loss_fn(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        index = draw_batch(len(train), stage.optim.batch, generator)
        mask = draw_masks(len(index), model.online.patches, stage.mask, generator)
        state = train.batch(index).state.to(device)
        with seeded_noise(generator, device):
            return model.loss(state, mask.to(device))

    def validate() -> dict[str, float]:
        return masked_loss(model, validation, stage.mask)

    task = Task(model, loss_fn, None if validation is None else validate, model.after_update)
    settings = budget(stage.optim, len(train))
    return Fit(task, settings, seed=seed, precision=precision, folder=folder)


def spread_rows(count: int, most: int = HELD_OUT) -> Tensor:
    """At most `most` of `count` indices, evenly spread and always the same."""
    return torch.linspace(0, count - 1, min(count, most)).round().long()


@torch.no_grad()
def masked_loss(
    model: MaskedPrediction,
    data: Transitions,
    ratio: float,
    rows: Tensor | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Stage-1 loss in eval mode with `ratio` of the patches hidden, the same ones every time."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    rows = spread_rows(len(data)) if rows is None else rows

    def loss(index: Tensor) -> tuple[Tensor, dict[str, float]]:
        mask = draw_masks(len(index), model.online.patches, ratio, generator).to(device)
        return model.loss(data.batch(index).state.to(device), mask)

    found = mean_terms(((len(index), *loss(index)) for index in rows.split(CHUNK)), len(rows))
    model.train(was_training)
    return found


def rollout_start(stage: Stage2Config, length: int) -> int:
    """Index of the last given step before the roll-out; ConfigError when it does not fit."""
    if stage.rollout_steps > length:
        raise ConfigError(
            f"pixels.vjepa2.stage2.rollout_steps={stage.rollout_steps} does not fit into windows "
            f"of pixels.data.sequence={length} transitions"
        )
    return length - stage.rollout_steps


def stage2_loss(
    world: WorldModel,
    now: Tensor,
    action: Tensor,
    then: Tensor,
    stage: Stage2Config,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Loss and terms of windows (B, T, ...); without a generator every given step is true."""
    steps = now.shape[1]
    start = rollout_start(stage, steps)
    forced = world(now, action)  # (B, T, D), z_1 .. z_T
    given = now[:, : start + 1]
    if generator is not None and start and stage.teacher_forcing_ratio < 1:
        draw = torch.rand(len(now), start, generator=generator)
        true = (draw < stage.teacher_forcing_ratio).to(now.device)[..., None]
        own = torch.where(true, given[:, 1:], forced[:, :start])
        given = torch.cat([given[:, :1], own], dim=1)
    imagined = world.rollout(given, action, stage.rollout_steps)
    teacher = F.l1_loss(forced, then)
    rollout = F.l1_loss(imagined, then[:, start:])
    total = stage.teacher_forcing * teacher + (1 - stage.teacher_forcing) * rollout
    return total, {"teacher_forcing": teacher.item(), "rollout": rollout.item()}


def fit_stage2(
    world: WorldModel,
    train: LatentWindows,
    validation: LatentWindows | None,
    config: PixelsConfig,
    *,
    seed: int,
    precision: str = "fp32",
    folder: Path | None = None,
) -> Fit:
    """Iterate to train the world model in place."""
    stage, length = config.vjepa2.stage2, config.data.sequence
    rollout_start(stage, length)
    device = next(world.parameters()).device

    def loss_fn(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        index = draw_batch(len(train.first), stage.optim.batch, generator)
        window = train.windows(index, length)
        with seeded_noise(generator, device):
            return stage2_loss(world, *window, stage, generator)

    def validate() -> dict[str, float]:
        return window_loss(world, validation, config)

    task = Task(world, loss_fn, None if validation is None else validate)
    settings = budget(stage.optim, len(train.first))
    return Fit(task, settings, seed=seed, precision=precision, folder=folder)


@torch.no_grad()
def window_loss(
    world: WorldModel, data: LatentWindows, config: PixelsConfig, rows: Tensor | None = None
) -> dict[str, float]:
    """Stage-2 loss and terms in eval mode; the given steps of the roll-out are all true."""
    was_training = world.training
    world.eval()
    rows = spread_rows(len(data.first)) if rows is None else rows

    def loss(index: Tensor) -> tuple[Tensor, dict[str, float]]:
        window = data.windows(index, config.data.sequence)
        return stage2_loss(world, *window, config.vjepa2.stage2)

    pieces = rows.tensor_split(math.ceil(len(rows) / CHUNK))
    found = mean_terms(((len(index), *loss(index)) for index in pieces), len(rows))
    world.train(was_training)
    return found
