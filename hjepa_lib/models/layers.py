"""Building blocks of all models: MLPs, pre-norm transformers (arXiv 1706.03762), patches.

Dropout acts on what a sub-layer adds: the fused attention kernel serves training as well.
"""

import contextlib
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hjepa_lib.config import ConfigError

Size = int | tuple[int, int]
"""Side of a square image, or (height, width), px."""


def mlp(
    *widths: int,
    activation: type[nn.Module] = nn.ReLU,
    norm: bool = False,
    dropout: float | None = None,
) -> nn.Sequential:
    """Linear layers (..., widths[0]) -> (..., widths[-1]).

    Between each two `norm`, an activation, and dropout (share in [0, 1)).
    """
    layers: list[nn.Module] = []
    for index, (before, after) in enumerate(pairwise(widths)):
        layers.append(nn.Linear(before, after))
        if index < len(widths) - 2:
            layers += [nn.LayerNorm(after)] if norm else []
            layers.append(activation())
            layers += [] if dropout is None else [nn.Dropout(dropout)]
    return nn.Sequential(*layers)


def convolutions(channels: int, width: int, *kernels: tuple[int, int]) -> nn.Sequential:
    """Of (kernel, stride) px to `width` channels, a ReLU behind each."""
    layers: list[nn.Module] = []
    for kernel, stride in kernels:
        layers += [nn.Conv2d(channels, width, kernel, stride, kernel // 2), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers)


@torch.no_grad()
def update_ema(slow: nn.Module, fast: nn.Module, decay: float) -> None:
    """theta_slow <- decay * theta_slow + (1 - decay) * theta_fast."""
    for old, new in zip(slow.parameters(), fast.parameters(), strict=True):
        old.lerp_(new, 1 - decay)


def full_precision(like: Tensor) -> torch.autocast:
    """No autocast inside: a bf16 training multiplies in bf16 in forward passes alone (Q4)."""
    return torch.autocast(like.device.type, enabled=False)


def count_parameters(module: nn.Module) -> int:
    """Trainable weights; a shared tensor counts once."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


class Attention(nn.Module):
    """Self-attention over (B, N, dim)."""

    def __init__(self, dim: int, heads: int, head_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.qkv = nn.Linear(dim, 3 * heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """`mask` broadcasts to (B, heads, N, N), True where attending is allowed."""
        parts = self.qkv(x).unflatten(-1, (3, self.heads, self.head_dim))
        # The CPU kernel is three times slower in bf16 than in fp32; elsewhere autocast decides.
        cpu = x.device.type == "cpu"
        with full_precision(x) if cpu else contextlib.nullcontext():
            q, k, v = ((p.float() if cpu else p).transpose(1, 2) for p in parts.unbind(2))
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        # (B, heads, N, head_dim) -> (B, N, heads * head_dim)
        return self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))


class Block(nn.Module):
    """Self-attention and a GELU MLP, each added to its input."""

    def __init__(
        self, dim: int, heads: int, head_dim: int, mlp_dim: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, heads, head_dim, dropout)
        self.mlp = feed_forward(dim, mlp_dim, dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """`depth` blocks and a last LayerNorm: (B, N, dim) -> (B, N, dim), without positions.

    `sizes` are heads, head_dim, mlp_dim and dropout.
    """

    def __init__(self, dim: int, depth: int, *sizes: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(dim, *sizes) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)


def feed_forward(dim: int, hidden: int, dropout: float = 0.0) -> nn.Sequential:
    """dim -> hidden -> dim with GELU."""
    return mlp(dim, hidden, dim, activation=nn.GELU).append(nn.Dropout(dropout))


def sides(image_size: Size) -> tuple[int, int]:
    """(height, width) in px of a square or rectangular image."""
    return (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)


def patch_grid(image_size: Size, patch: int) -> tuple[int, int]:
    """Patches along (height, width); ConfigError for another remainder than 0."""
    height, width = sides(image_size)
    if height % patch or width % patch:
        raise ConfigError(f"images of {height} x {width} px do not divide into {patch} px patches")
    return height // patch, width // patch


class Patches(nn.Module):
    """(M, C, Hpx, Wpx) -> (M, N, dim): a linear token per patch, row by row, with its position.

    Where `hidden` (M, N) is True, a given `token` (dim,) stands at that position (F8).
    """

    def __init__(self, channels: int, image_size: Size, patch: int, dim: int) -> None:
        super().__init__()
        rows, columns = patch_grid(image_size, patch)
        self.count = rows * columns
        self.project = nn.Conv2d(channels, dim, patch, stride=patch)
        self.position = nn.Parameter(torch.zeros(self.count, dim))

    def forward(
        self, x: Tensor, hidden: Tensor | None = None, token: Tensor | None = None
    ) -> Tensor:
        tokens = self.project(x).flatten(2).transpose(1, 2) + self.position
        if hidden is None:
            return tokens
        return torch.where(hidden[..., None], (token + self.position).to(tokens.dtype), tokens)


def draw_masks(count: int, patches: int, ratio: float, generator: torch.Generator) -> Tensor:
    """(count, patches) bool, True = hidden: int(ratio * patches) in each row."""
    hidden = int(ratio * patches + 1e-9)  # 0.29 * 100 is 28.999... in binary
    order = torch.rand(count, patches, generator=generator).argsort(dim=1)
    return order < hidden
