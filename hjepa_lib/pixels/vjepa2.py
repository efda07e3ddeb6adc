"""Two-stage world model in the style of V-JEPA 2 (arXiv 2506.09985), for 64 px images."""

from __future__ import annotations

import copy
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from hjepa_lib.config import ConfigError
from hjepa_lib.config.pixels import PixelsConfig
from hjepa_lib.models.layers import Block, Past, Patches, draw_masks, mlp, update_ema
from hjepa_lib.pixels.networks import action_embedding, initialise, prepend
from hjepa_lib.pixels.training import in_chunks
from hjepa_lib.pixels.transitions import PixelShapes, Transitions

TOKEN_WIDTH = 64  # of the `projected` mask token
LOSSES = {"l1": F.l1_loss, "mse": F.mse_loss, "smooth_l1": F.smooth_l1_loss}


class MaskedViT(nn.Module):
    """(B, L, C, Hpx, Wpx) in [0, 1] -> CLS latent (B, D); a patch has L * C channels.

    The mask is an argument of the call and never a state of the encoder (F4).
    """

    def __init__(self, config: PixelsConfig, shapes: PixelShapes) -> None:
        super().__init__()
        stage, own = config.vjepa2.stage1, config.encoder
        dim, planes = own.latent_dim, shapes.stack * shapes.channels
        self.embed = Patches(planes, shapes.image_size, stage.patch, dim)
        self.patches = self.embed.count
        self.cls, self.cls_position = (nn.Parameter(torch.zeros(dim)) for _ in range(2))
        projected = stage.mask_token == "projected"
        self.token = nn.Parameter(torch.zeros(TOKEN_WIDTH if projected else dim))
        self.project = nn.Linear(TOKEN_WIDTH, dim) if projected else nn.Identity()
        self.dropout = nn.Dropout(own.embedding_dropout)
        sizes = own.heads, own.head_dim, own.mlp_dim, own.dropout
        self.blocks = nn.Sequential(*(Block(dim, *sizes) for _ in range(stage.depth)))
        initialise(self)

    def tokens(self, pixels: Tensor, mask: Tensor | None = None) -> Tensor:
        """Patches at their positions (B, N, D), the hidden ones replaced by the token (F8)."""
        patches = self.embed(pixels.flatten(1, 2))
        if mask is None:
            return patches
        hidden = self.project(self.token) + self.embed.position
        return torch.where(mask[..., None], hidden.to(patches.dtype), patches)

    def forward(self, pixels: Tensor, mask: Tensor | None = None, patches: bool = False) -> Tensor:
        """(B, D), or with `patches` all tokens (B, 1 + N, D), CLS first; `mask` (B, N) bool."""
        x = prepend(self.cls + self.cls_position, self.tokens(pixels, mask))
        x = self.blocks(self.dropout(x)).float()
        return x if patches else x[:, 0]


class MaskedPrediction(nn.Module):
    """Stage 1: |g(f(s, m)) - f'(s)| of online encoder f, its EMA target f', predictor g, mask m."""

    name = "stage1"

    def __init__(self, config: PixelsConfig, shapes: PixelShapes) -> None:
        super().__init__()
        self.config, self.shapes, self.stage = config, shapes, config.vjepa2.stage1
        self.online = MaskedViT(config, shapes)
        self.target = copy.deepcopy(self.online).requires_grad_(False).eval()
        dim = config.encoder.latent_dim
        self.predictor = mlp(dim, *self.stage.hidden, dim, activation=nn.GELU)
        initialise(self.predictor)

    def train(self, mode: bool = True) -> MaskedPrediction:
        """Targets are never dropped out."""
        super().train(mode)
        self.target.eval()
        return self

    def predict(self, state: Tensor, mask: Tensor, patches: bool = False) -> tuple[Tensor, Tensor]:
        """(B, D) each: the latent named from the visible patches, and the target's."""
        pixels = self.shapes.pixels(state)
        with torch.no_grad():
            whole = self.target(pixels, patches=patches)
        return self.predictor(self.online(pixels, mask, patches)).float(), whole

    def loss(self, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Error of the predicted latent, and with `patch_loss` of the hidden patches' tokens."""
        measure, weight = LOSSES[self.stage.loss], self.stage.patch_loss
        mask = draw_masks(len(batch.state), self.online.patches, self.stage.mask, generator)
        mask = mask.to(batch.state.device)
        named, whole = self.predict(batch.state, mask, patches=weight > 0)
        if not weight:
            latent = measure(named, whole)
            return latent, {"latent": latent.item()}
        latent, hidden = measure(named[:, 0], whole[:, 0]), named.new_zeros(())
        if mask.any():
            hidden = measure(named[:, 1:][mask], whole[:, 1:][mask])
        return latent + weight * hidden, {"latent": latent.item(), "patches": hidden.item()}

    def after_update(self) -> None:
        """The target follows the online encoder."""
        update_ema(self.target, self.online, self.stage.ema_decay)


class WorldModel(nn.Module):
    """Stage 2: from (z_0, a_0) .. (z_t, a_t) the next latent z_{t+1} = f(s_{t+1}), for every t.

    A last LayerNorm behind the output layer, as in the seed, would fix every prediction's length.
    """

    def __init__(self, config: PixelsConfig, shapes: PixelShapes) -> None:
        super().__init__()
        self.stage, self.length = config.vjepa2.stage2, config.data.sequence
        stage, dim = self.stage, config.encoder.latent_dim
        if stage.rollout_steps > self.length:
            raise ConfigError(
                f"pixels.vjepa2.stage2.rollout_steps={stage.rollout_steps} does not fit into "
                f"windows of pixels.data.sequence={self.length} transitions"
            )
        width, sizes = dim + config.action_dim, (stage.heads, stage.head_dim, stage.mlp_dim)
        self.embedding = action_embedding(shapes, config.action_dim)
        self.norm_in, self.norm_out = nn.LayerNorm(dim), nn.LayerNorm(width)
        self.join = nn.Linear(width, width)
        self.position = nn.Parameter(torch.zeros(self.length, width))
        self.blocks = nn.ModuleList(Block(width, *sizes, stage.dropout) for _ in range(stage.depth))
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
        start, kept = past[0][0].shape[2] if past else 0, []
        if (end := start + latents.shape[1]) > self.length:
            raise ConfigError(
                f"the world model has seen windows of {self.length} steps, not of {end}: ask for a "
                "shorter roll-out, or raise pixels.data.sequence and train again"
            )
        x = self.join(torch.cat([self.norm_in(latents), self.embedding(actions)], dim=-1))
        x = x + self.position.narrow(0, start, x.shape[1])
        for block, before in zip_longest(self.blocks, past):
            x, pair = block.extend(x, before, causal=not past)
            kept.append(pair)
        named = self.out(self.norm_out(x)).float()
        return (latents + named if self.change else named), kept

    def rollout(self, given: Tensor, actions: Tensor, n: int) -> Tensor:
        """The first T latents (B, T, D), actions (B, >= T + n - 1, ...) -> z_T .. z_{T+n-1}.

        Each of the n predictions (B, n, D) is fed back as input.
        """
        start = given.shape[1]
        predictions, past = self.extend(given, actions[:, :start], [])
        imagined = [predictions[:, -1:]]
        for step in range(start, start + n - 1):
            after, past = self.extend(imagined[-1], actions[:, step : step + 1], past)
            imagined.append(after)
        return torch.cat(imagined, dim=1)

    def loss(
        self, window: Any, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        """w TF + (1 - w) RO, and both terms, of windows (z_t, a_t, z_{t+1}), (B, T, ...) each.

        TF: mean L1 error of every step from true latents; RO: of the last `rollout_steps`, fed back
        from the steps before. Of those but the first, in training, `teacher_forcing_ratio` keep
        their true latent (the generator draws them), the others are one-step predictions.
        """
        (now, action, then), stage = window, self.stage
        start = now.shape[1] - stage.rollout_steps
        forced = self(now, action)  # (B, T, D), z_1 .. z_T
        given = now[:, : start + 1]
        if self.training and start and stage.teacher_forcing_ratio < 1:
            draw = torch.rand(len(now), start, generator=generator)
            true = (draw < stage.teacher_forcing_ratio).to(now.device)[..., None]
            own = torch.where(true, given[:, 1:], forced[:, :start])
            given = torch.cat([given[:, :1], own], dim=1)
        imagined = self.rollout(given, action, stage.rollout_steps)
        teacher, rollout = F.l1_loss(forced, then), F.l1_loss(imagined, then[:, start:])
        total = stage.teacher_forcing * teacher + (1 - stage.teacher_forcing) * rollout
        return total, {"teacher_forcing": teacher.item(), "rollout": rollout.item()}


def encode_states(model: Any, data: Transitions, length: int) -> TensorDataset:
    """All windows z_t (W, T, D), actions (W, T, ...), z_{t+1} (W, T, D) of `data` (VJ-7).

    From `model.encode`: unmasked, without dropout or gradient (F4).
    """

    def both(batch: Any) -> tuple[Tensor, Tensor]:
        return model.encode(batch.state), model.encode(batch.next_state)

    now, then = in_chunks(both, model, data)
    rows = (data.windows(length)[:, None] + torch.arange(length)).to(now.device)
    return TensorDataset(now[rows], data.action.to(now.device)[rows], then[rows])
