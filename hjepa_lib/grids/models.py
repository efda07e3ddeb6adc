"""Seed 004's models of discrete grids: a JEPA with an EMA target, and its generative twin.

    z_s = enc(s),  z_a = act(a),  zhat = z_s + T(z_s, z_a)
    JEPA:  mean (zhat - enc_ema(s'))^2 + r (std + cov)(z_s), as in models/objectives.py
    twin:  CE(cells of s' | zhat) + CE of height, width, most, least, count + w CE(a | z_a)

Grids are canvases (B, S, S) int64; a grid has one latent, whatever the canvas it lies on.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hjepa_lib.config.pixels import GridConfig
from hjepa_lib.grids.buffer import GridBatch
from hjepa_lib.grids.world import ACTIONS, COLOURS, FACTORS, MOST, PAD, facts
from hjepa_lib.models.layers import Transformer, mlp, update_ema
from hjepa_lib.models.objectives import covariance, hinge_std

FACT_CLASSES = (MOST + 1, MOST + 1, COLOURS, COLOURS, COLOURS + 1)
"""Values 0..n-1 of each of world.FACTS; a side or a count of 0 does not occur."""


class FactTokens(nn.Module):
    """One token per fact: (B, 5) -> (B, 5, D)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(count, dim) for count in FACT_CLASSES)

    def forward(self, values: Tensor) -> Tensor:
        pairs = zip(self.tables, values.unbind(1), strict=True)
        return torch.stack([table(column) for table, column in pairs], dim=1)


class GridEncoder(nn.Module):
    """Canvases (B, S, S) -> (B, D), from colour + row + column of every cell, and the facts."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.colour = nn.Embedding(COLOURS, width)
        self.row, self.column = nn.Embedding(MOST, width), nn.Embedding(MOST, width)
        self.facts = FactTokens(dim)

    def cells(self, grids: Tensor) -> Tensor:
        """Canvases (B, H, W) -> (B, H, W, width)."""
        line = torch.arange(MOST, device=grids.device)
        rows, columns = (line[:side] for side in grids.shape[1:])
        places = self.row(rows)[:, None] + self.column(columns)
        return self.colour(grids.clamp(min=0)) + places


class GridTransformer(GridEncoder):
    """Tokens: CLS, five facts, one per cell; CLS, LayerNorm, linear."""

    def __init__(self, config: GridConfig) -> None:
        dim = config.latent_dim
        super().__init__(dim, dim)
        self.cls = nn.Parameter(0.02 * torch.randn(dim))
        head_dim = max(1, dim // config.heads)  # the heads share the latent width
        self.blocks = Transformer(dim, config.encoder_depth, config.heads, head_dim, config.mlp_dim)
        self.head = nn.Linear(dim, dim)

    def forward(self, grids: Tensor) -> Tensor:
        values = facts(grids)
        # What is padding in the whole batch is not computed.
        grids = grids[:, : int(values[:, 0].max()), : int(values[:, 1].max())]
        cls = self.cls.expand(len(grids), 1, -1)
        tokens = torch.cat([cls, self.facts(values), self.cells(grids).flatten(1, 2)], dim=1)
        seen = F.pad((grids >= 0).flatten(1), (6, 0), value=True)  # (B, 6 + H W)
        mask = None if bool(seen.all()) else seen[:, None, None]
        return self.head(self.blocks(tokens, mask)[:, 0])


class GridCnn(GridEncoder):
    """Three 3 x 3 convolutions (stride 1, 2, 2), masked; mean over cells."""

    def __init__(self, config: GridConfig) -> None:
        dim = config.latent_dim
        super().__init__(32, dim)
        self.convs = nn.ModuleList(
            nn.Conv2d(width, 64, 3, stride, padding=1)
            for width, stride in ((32, 1), (64, 2), (64, 2))
        )
        self.mix = nn.Linear(64, dim)
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, dim)

    def forward(self, grids: Tensor) -> Tensor:
        mask = (grids >= 0)[:, None].float()  # (B, 1, S, S)
        x = self.cells(grids).permute(0, 3, 1, 2) * mask
        for conv in self.convs:
            # A cell of the coarser map is part of the grid when its centre is.
            mask = mask[:, :, :: conv.stride[0], :: conv.stride[1]]
            x = F.gelu(conv(x)) * mask
        pooled = x.sum((2, 3)) / mask.sum((2, 3))  # (B, 64)
        return self.head(self.norm(F.gelu(self.mix(pooled)) + self.facts(facts(grids)).sum(1)))


ENCODERS = {"transformer": GridTransformer, "cnn": GridCnn}


class ActionEncoder(nn.Module):
    """Ids (B,) -> (B, action_dim): the sum of learned rows for their `FACTORS`."""

    def __init__(self, config: GridConfig) -> None:
        super().__init__()
        self.register_buffer("parts", FACTORS, persistent=False)
        self.rows = nn.Embedding(int(FACTORS.max()) + 1, config.action_dim)

    def forward(self, action: Tensor) -> Tensor:
        return self.rows(F.embedding(action, self.parts)).sum(-2)


class Transition(nn.Module):
    """Transformer over two tokens, state and action; what the state's token adds to the latent."""

    def __init__(self, config: GridConfig) -> None:
        super().__init__()
        dim = config.latent_dim
        self.action = nn.Linear(config.action_dim, dim)
        self.positions = nn.Parameter(torch.zeros(2, dim))
        self.blocks = Transformer(dim, config.depth, config.heads, config.head_dim, config.mlp_dim)
        self.head = nn.Linear(dim, dim)

    def forward(self, latent: Tensor, action: Tensor) -> Tensor:
        """(B, D), (B, action_dim) -> (B, D)."""
        tokens = torch.stack([latent, self.action(action)], dim=1) + self.positions  # (B, 2, D)
        return latent + self.head(self.blocks(tokens)[:, 0])


class GridModel(nn.Module):
    """What JEPA and twin share; what differs is the objective."""

    def __init__(self, config: GridConfig, size: int) -> None:
        super().__init__()
        self.config, self.size, self.latent_dim = config, size, config.latent_dim
        self.encoder = ENCODERS[config.encoder](config)
        self.action_encoder = ActionEncoder(config)
        self.transition = Transition(config)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.transition.positions.device

    def encode(self, state: Tensor) -> Tensor:
        """Canvases (B, S, S) -> (B, D)."""
        return self.encoder(state)

    def encode_target(self, state: Tensor) -> Tensor:
        """The latents (B, D) that imagined ones should be."""
        return self.encode(state)

    def imagine(self, latent: Tensor, action: Tensor) -> Tensor:
        """(B, D), ids (B,) -> the imagined next latent (B, D)."""
        return self.transition(latent, self.action_encoder(action))

    def after_update(self) -> None:
        """Called after every update of the optimiser."""


class GridJepa(GridModel):
    """Predicts the latent of the EMA target encoder (GRID-1)."""

    def __init__(self, config: GridConfig, size: int) -> None:
        super().__init__(config, size)
        self.target = copy.deepcopy(self.encoder).requires_grad_(False)

    @torch.no_grad()
    def encode_target(self, state: Tensor) -> Tensor:
        """Of the slow encoder, without gradient."""
        return self.target(state)

    def loss(self, batch: GridBatch) -> tuple[Tensor, dict[str, float]]:
        latent = self.encode(batch.state)
        prediction = self.imagine(latent, batch.action)
        target = self.encode_target(batch.next_state)
        loss = F.mse_loss(prediction, target)
        cosine = F.cosine_similarity(prediction.detach(), target, dim=-1).mean()
        terms = {"jepa_prediction_loss": loss.item(), "jepa_cosine_sim": cosine.item()}
        if weight := self.config.regulariser:
            loss = loss + weight * (hinge_std(latent) + covariance(latent))
        return loss, terms

    def after_update(self) -> None:
        """The target follows the encoder."""
        update_ema(self.target, self.encoder, self.config.ema_decay)


class GridTwin(GridModel):
    """Predicts the next grid itself, cell by cell, and its metadata (GRID-8)."""

    def __init__(self, config: GridConfig, size: int) -> None:
        super().__init__(config, size)
        dim = config.latent_dim
        self.spread = nn.Linear(dim, config.mlp_dim)
        self.places = nn.Parameter(0.02 * torch.randn(size * size, config.mlp_dim))
        self.cells = mlp(config.mlp_dim, config.mlp_dim, COLOURS, activation=nn.GELU)
        self.fact_heads = nn.ModuleList(nn.Linear(dim, count) for count in FACT_CLASSES)
        self.action_head = nn.Linear(config.action_dim, ACTIONS)

    def decode(self, latent: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, D) -> logits: cells (B, 11, S, S), and (B, n) of every fact."""
        hidden = F.gelu(self.spread(latent)[:, None] + self.places)  # (B, S S, mlp_dim)
        cells = self.cells(hidden).transpose(1, 2).unflatten(2, (self.size, self.size))
        return cells, [head(latent) for head in self.fact_heads]

    def predict(self, state: Tensor, action: Tensor) -> Tensor:
        """The most likely next canvas (B, S, S), padded by its own height and width."""
        cells, values = self.decode(self.imagine(self.encode(state), action))
        height, width = (logits.argmax(1)[:, None, None] for logits in values[:2])
        line = torch.arange(self.size, device=state.device)
        inside = (line[:, None] < height) & (line < width)
        return torch.where(inside, cells.argmax(1), PAD)

    def loss(self, batch: GridBatch) -> tuple[Tensor, dict[str, float]]:
        code = self.action_encoder(batch.action)
        cells, values = self.decode(self.transition(self.encode(batch.state), code))
        transition = F.cross_entropy(cells, batch.next_state, ignore_index=PAD)
        for logits, column in zip(values, facts(batch.next_state).unbind(1), strict=True):
            transition = transition + F.cross_entropy(logits, column)
        action = F.cross_entropy(self.action_head(code), batch.action)
        total = transition + self.config.action_weight * action
        terms = {"total": total, "transition": transition, "action": action}
        return total, {f"gen_{name}_loss": value.item() for name, value in terms.items()}


KINDS = {"jepa": GridJepa, "generative": GridTwin}


def build_grid_model(kind: str, config: GridConfig, size: int, seed: int) -> GridModel:
    """JEPA or twin for canvases of `size` cells; what they share starts from the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return KINDS[kind](config, size)
