"""Two-stage world model in the style of V-JEPA 2 (arXiv 2506.09985), at the size of 64 px images.

Stage 1 hides a share of the patches from the online encoder f, and a predictor g names the latent
that the EMA target f' gives the whole state s (m: exactly int(ratio * N) hidden patches):

    L1 = |g(f(s, m)) - f'(s)|           f' <- decay f' + (1 - decay) f after each update

Stage 2 freezes f and trains a transformer over z_t = f(s_t), causal in time, that imagines z_{t+1}
from all (z, a) up to t (training/vjepa2.py has its loss). What differs from the paper: one token
(CLS) is the latent, patches are 2-D over stacked frames, and hidden patches stay in the sequence as
a learned token. A mask is an argument of the call and never a state of the encoder, so nothing can
leave it on in evaluation (F4).
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hjepa_lib.config.fields import ConfigError
from hjepa_lib.config.pixels import PixelsConfig
from hjepa_lib.models.layers import mlp, update_ema
from hjepa_lib.models.transformer import Block
from hjepa_lib.pixels.models import (
    ActionEmbedding,
    JepaStep,
    PixelModel,
    PixelShapes,
    shapes_of,
)
from hjepa_lib.pixels.networks import ByteDropout, initialise, patch_grid, use_byte_dropout
from hjepa_lib.pixels.transitions import TransitionBatch

TOKEN_WIDTH = 64  # of the `projected` mask token
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": F.l1_loss, "mse": F.mse_loss, "smooth_l1": F.smooth_l1_loss,
}  # fmt: skip
Past = tuple[Tensor, Tensor]
"""Keys and values of earlier tokens, each (B, heads, N, head_dim)."""


def draw_masks(count: int, patches: int, ratio: float, generator: torch.Generator) -> Tensor:
    """(count, patches) bool, True = hidden: exactly int(ratio * patches) of them per sample."""
    hidden = int(ratio * patches + 1e-9)  # 0.29 * 100 is 28.999... in binary
    order = torch.rand(count, patches, generator=generator).argsort(dim=1)
    return order < hidden


def run_block(
    block: Block, x: Tensor, past: Past | None = None, causal: bool = False, keep: int | None = None
) -> tuple[Tensor, Past]:
    """`block(x)` that also attends to `past`, and returns only the first `keep` tokens.

    Later tokens still serve as keys and values; their own results would go unused.
    """
    own = block.attention
    parts = own.qkv(block.norm1(x)).unflatten(-1, (3, own.heads, own.head_dim))
    cpu = x.device.type == "cpu"  # whose attention kernel is slower in bf16 (models/transformer.py)
    with torch.autocast("cpu", enabled=False) if cpu else contextlib.nullcontext():
        # each (B, heads, N, head_dim)
        q, k, v = ((p.float() if cpu else p).transpose(1, 2) for p in parts.unbind(2))
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        mixed = F.scaled_dot_product_attention(q[:, :, :keep], k, v, is_causal=causal)
    x = x[:, :keep] + own.dropout(own.out(mixed.transpose(1, 2).flatten(2)))
    return x + block.mlp(block.norm2(x)), (k, v)


class MaskedViT(nn.Module):
    """(B, L, C, Hpx, Wpx) uint8 -> CLS latent (B, D); a patch has L * C channels."""

    pixels, scaled = PixelModel.pixels, staticmethod(PixelModel.scaled)

    def __init__(self, config: PixelsConfig, shapes: PixelShapes) -> None:
        super().__init__()
        stage, own = config.vjepa2.stage1, config.encoder
        dim, planes = own.latent_dim, shapes.stack * shapes.channels
        rows, columns = patch_grid(shapes.image_size, stage.patch)
        self.shapes = shapes
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

    def tokens(self, state: Tensor, mask: Tensor | None = None) -> Tensor:
        """Patch embeddings (B, N, D) before positions; hidden ones replaced by the token."""
        pixels = self.pixels(state).flatten(1, 2)  # scaled here and nowhere else (F14)
        patches = self.embed(pixels).flatten(2).transpose(1, 2)
        if mask is None:
            return patches
        return torch.where(mask[..., None], self.project(self.token).to(patches.dtype), patches)

    def forward(self, state: Tensor, mask: Tensor | None = None, patches: bool = False) -> Tensor:
        """(B, D), or with `patches` all tokens (B, 1 + N, D), CLS first; `mask` (B, N) bool."""
        x = self.tokens(state, mask)
        x = torch.cat([self.cls.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
        x = self.dropout(x + self.position)  # positions once, also under hidden patches (F8)
        *body, last = self.blocks
        for block in body:
            x = block(x)
        x, _ = run_block(last, x, keep=None if patches else 1)
        return x.float() if patches else x[:, 0].float()


class MaskedPrediction(nn.Module):
    """Stage 1: online encoder, its EMA target, predictor."""

    def __init__(self, config: PixelsConfig, shapes: PixelShapes) -> None:
        super().__init__()
        self.config = config.vjepa2.stage1
        self.online = MaskedViT(config, shapes)
        self.target = copy.deepcopy(self.online).requires_grad_(False).eval()
        dim = config.encoder.latent_dim
        self.predictor = mlp(dim, *self.config.hidden, dim, activation=nn.GELU)
        initialise(self.predictor)

    def train(self, mode: bool = True) -> MaskedPrediction:
        super().train(mode)
        self.target.eval()  # targets are never dropped out
        return self

    def predict(self, state: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D) each: the latent named from the visible patches, and the target's."""
        with torch.no_grad():
            whole = self.target(state)
        return self.predictor(self.online(state, mask)).float(), whole

    def loss(self, state: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Error of the predicted latent; with `patch_loss` also of the hidden patches' tokens."""
        measure, weight = LOSSES[self.config.loss], self.config.patch_loss
        if not weight:
            total = measure(*self.predict(state, mask))
            return total, {"latent": total.item()}
        with torch.no_grad():
            whole = self.target(state, patches=True)
        named = self.predictor(self.online(state, mask, patches=True)).float()
        latent = measure(named[:, 0], whole[:, 0])
        if not mask.any():
            return latent, {"latent": latent.item(), "patches": 0.0}
        hidden = measure(named[:, 1:][mask], whole[:, 1:][mask])
        return latent + weight * hidden, {"latent": latent.item(), "patches": hidden.item()}

    def after_update(self) -> None:
        """The target follows the online encoder."""
        update_ema(self.target, self.online, self.config.ema_decay)


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
            x, pair = run_block(block, x, past[index] if past else None, causal=not past)
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


class VJepa2(PixelModel):
    """The trained pair as one frozen model of the comparison (VJ-14): it never trains again."""

    name = "vjepa2"
    predicts_latents = True

    def __init__(self, config: PixelsConfig, shapes: PixelShapes) -> None:
        super(PixelModel, self).__init__()  # whose encoder is another one
        self.config, self.shapes = config, shapes
        self.latent_dim = config.encoder.latent_dim
        self.encoder = MaskedViT(config, shapes)
        self.world = WorldModel(config, shapes)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> VJepa2:
        """Stays in evaluation mode, whoever trains a head on it (F4)."""
        return super().train(False)

    def encode(self, state: Tensor) -> Tensor:
        """(B, L, C, Hpx, Wpx) uint8 -> (B, D), from the whole, unmasked state."""
        return self.encoder(state)

    def imagine(self, latent: Tensor, action: Tensor) -> Tensor:
        """Next latent (B, D) after one action."""
        return self.world(latent[:, None], action[:, None])[:, 0]

    def rollout(self, latent: Tensor, actions: Tensor, n: int) -> Tensor:
        """`n` imagined latents (B, n, D)."""
        return self.world.rollout(latent, actions, n)

    def embed_action(self, action: Tensor) -> Tensor:
        """(B,) or (B, A) -> (B, 32)."""
        return self.world.embedding(action)

    def forward(self, state: Tensor, action: Tensor, next_state: Tensor) -> JepaStep:
        """The outputs of JEPA; target and latent of s_{t+1} are the same here."""
        now, then = self.encode(state), self.encode(next_state)
        return JepaStep(self.imagine(now, action), then, now, then)

    def loss(self, batch: TransitionBatch) -> tuple[Tensor, dict[str, float]]:
        """L1 error of one imagined step, to look at; nothing here takes a gradient."""
        step = self(batch.state, batch.action, batch.next_state)
        error = F.l1_loss(step.prediction, step.target)
        return error, {"prediction": error.item()}


class RandomVit(PixelModel):
    """The encoder and action embedding of `VJepa2` as they were drawn: its untrained baseline.

    With one seed stage 1 begins with this very encoder.
    """

    name = "random_vit"

    def __init__(self, config: PixelsConfig, shapes: PixelShapes) -> None:
        super(PixelModel, self).__init__()  # whose encoder is another one
        self.config, self.shapes = config, shapes
        self.latent_dim = config.encoder.latent_dim
        whole = VJepa2(config, shapes)
        self.encoder, self.action = whole.encoder, whole.world.embedding
        self.eval()

    def encode(self, state: Tensor) -> Tensor:
        """(B, L, C, Hpx, Wpx) uint8 -> (B, D)."""
        return self.encoder(state)


def build_vjepa2(config: PixelsConfig, data: Any) -> VJepa2:
    """An untrained model for the images and actions of `data` (Transitions or PixelShapes)."""
    return VJepa2(config, shapes_of(data))
