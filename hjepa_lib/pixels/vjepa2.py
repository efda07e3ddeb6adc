"""Two-stage world model in the style of V-JEPA 2 (arXiv 2506.09985), for small pictures."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from hjepa_lib.config import ConfigError
from hjepa_lib.config.pixels import PixelEncoderConfig, PixelsConfig, Stage1Config
from hjepa_lib.models.layers import Block, draw_masks, mlp, sides, update_ema
from hjepa_lib.pixels.networks import (
    Sees,
    Vit,
    action_embedding,
    brightest,
    initialise,
    place_maps,
)
from hjepa_lib.pixels.training import in_chunks
from hjepa_lib.pixels.transitions import PixelShapes, Transitions


class TokenEncoder(nn.Module):
    """States (B, L, C, Hpx, Wpx) -> (B, D) of a masked ViT, whose patches have L * C planes.

    A latent is read from all patches, the D directions in which those of training states differ
    most, or from the class token; either is centred and scaled by the training states (X9, X10).
    With `pixels.encoder.kind=places` patches are cut from that encoder's maps, and where these are
    brightest comes first in a latent.
    """

    def __init__(
        self, config: PixelEncoderConfig, stage: Stage1Config, shapes: PixelShapes
    ) -> None:
        super().__init__()
        dim, width, self.read = config.latent_dim, stage.width, stage.read
        planes, size, patch = shapes.stack * shapes.channels, shapes.image_size, stage.patch
        self.maps: nn.Module | None = None
        if config.kind == "places" and self.read == "tokens":
            dim, self.maps = dim - 2 * config.places, place_maps(config, planes)
            planes, size = config.places, tuple((side + 1) // 2 for side in sides(size))
            patch = max(1, patch // 2)
        self.vit = Vit(config, width, planes, size, patch, stage.depth, masked=True)
        count = width * (self.vit.patches.count if self.read == "tokens" else 1)
        if count < dim:
            raise ConfigError(
                f"pixels.encoder.latent_dim={dim} is more than the {count} numbers of all tokens"
            )
        self.register_buffer("centre", torch.zeros(count))
        self.register_buffer("basis", torch.eye(count, dim))

    def tokens(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, 1 + N, D), the class token first; patches where `mask` (B, N) is True are hidden."""
        return self.vit(self.seen(x), mask)

    def seen(self, x: Tensor) -> Tensor:
        """What patches are cut from (B, planes, H, W)."""
        x = x.flatten(1, 2)
        return x if self.maps is None else self.maps(x)

    def forward(self, x: Tensor) -> Tensor:
        directions = (self.raw(x) - self.centre) @ self.basis
        if self.maps is None:
            return directions
        return torch.cat([brightest(self.seen(x)), directions], dim=-1)

    def raw(self, x: Tensor) -> Tensor:
        """What a latent is read from (B, P): all patches, or the class token."""
        tokens = self.tokens(x)
        return tokens[:, 0] if self.read == "cls" else tokens[:, 1:].flatten(1)

    @torch.no_grad()
    def fit(self, pixels: Tensor) -> None:
        """Take centre and basis from training pixels (M, L, C, Hpx, Wpx), M of at least D."""
        read = torch.cat([self.raw(part) for part in pixels.split(128)]).double().cpu()
        values, found = read - read.mean(0), self.basis.double().cpu()
        if self.read == "tokens":
            found = torch.linalg.svd(values, full_matrices=False)[2][: found.shape[1]].T
            scale = (values @ found).square().mean().sqrt()
        else:
            scale = values.square().mean(0).sqrt()
        self.centre.copy_(read.mean(0))
        self.basis.copy_(found / scale.clamp(min=1e-8))


class MaskedPrediction(Sees):
    """Stage 1: |g(f(s, m)) - LN f'(s)| of online encoder f, its EMA target f', predictor g, mask m.

    Targets are layer-normed, as in I-JEPA and V-JEPA: no latent gets small to be easy (X9).
    """

    name = "stage1"

    def __init__(self, config: PixelsConfig, shapes: PixelShapes) -> None:
        super().__init__(config, shapes)
        self.stage = config.vjepa2.stage1
        self.online = TokenEncoder(config.encoder, self.stage, shapes)
        dim = self.stage.width
        initialise(self.online)
        self.target = copy.deepcopy(self.online).requires_grad_(False).eval()
        self.predictor = mlp(dim, *self.stage.hidden, dim, activation=nn.GELU)
        initialise(self.predictor)

    def predict(self, state: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 1 + N, D) each: tokens named from the visible patches, and the target's."""
        pixels = self.pixels(state)
        with torch.no_grad():
            whole = self.target.tokens(pixels)
            whole = F.layer_norm(whole, whole.shape[-1:])
        return self.predictor(self.online.tokens(pixels, mask)).float(), whole

    def loss(self, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Error of the class token, and with `patch_loss` that of the hidden patches' tokens."""
        weight, sizes = self.stage.patch_loss, (len(batch.state), self.online.vit.patches.count)
        mask = draw_masks(*sizes, self.stage.mask, generator).to(batch.state.device)
        named, whole = self.predict(batch.state, mask)
        latent, hidden = F.l1_loss(named[:, 0], whole[:, 0]), named.new_zeros(())
        terms = {"latent": latent.item()}
        if weight and mask.any():
            hidden = F.l1_loss(named[:, 1:][mask], whole[:, 1:][mask])
            terms["patches"] = hidden.item()
        return latent + weight * hidden, terms

    def after_update(self) -> None:
        """The target follows the online encoder."""
        update_ema(self.target, self.online, self.stage.ema_decay)


class WorldModel(nn.Module):
    """Stage 2: from (z_0, a_0) .. (z_t, a_t) the next latent z_{t+1} = f(s_{t+1}), for every t.

    Unlike in the seed no LayerNorm behind the output fixes the length of predictions.
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
        steps = latents.shape[1]
        if steps > self.length:
            raise ConfigError(
                f"the world model has seen windows of {self.length} steps, not of {steps}: ask for "
                "a shorter roll-out, or raise pixels.data.sequence and train again"
            )
        x = self.join(torch.cat([self.norm_in(latents), self.embedding(actions)], dim=-1))
        x = x + self.position[:steps]
        causal = torch.ones(steps, steps, dtype=torch.bool, device=x.device).tril()
        for block in self.blocks:
            x = block(x, causal)
        named = self.out(self.norm_out(x)).float()
        return latents + named if self.change else named

    def rollout(self, given: Tensor, actions: Tensor, n: int) -> Tensor:
        """The first T latents (B, T, D), actions (B, >= T + n - 1, ...) -> z_T .. z_{T+n-1}.

        Each of the n predictions (B, n, D) is fed back as input.
        """
        for _ in range(n):
            after = self(given, actions[:, : given.shape[1]])[:, -1:]
            given = torch.cat([given, after], dim=1)
        return given[:, -n:]

    def loss(
        self, window: Any, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        """w TF + (1 - w) RO, and both terms, of windows (z_t, a_t, z_{t+1}), (B, T, ...) each.

        TF: mean L1 error of every step from true latents; RO: of the last `rollout_steps`, fed back
        from the steps before. Of those but the first, in training, a drawn share of
        `teacher_forcing_ratio` keeps its true latent, the others are one-step predictions.
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

    def parts(batch: Any) -> dict[str, Tensor]:
        now, then = model.encode(batch.state), model.encode(batch.next_state)
        return {"now": now, "action": batch.action, "then": then}

    found = in_chunks(parts, data, model.eval().background.device)
    rows = data.windows(length)[:, None] + torch.arange(length)
    return TensorDataset(*(part[rows.to(part.device)] for part in found.values()))
