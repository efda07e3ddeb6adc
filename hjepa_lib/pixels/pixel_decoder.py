"""Transformer decoder from one latent to a frame (MOD-6): (B, input_dim) -> (B, C, Hpx, Wpx).

The latent becomes one memory token; one learned query per output patch goes through blocks of
self-attention, cross-attention to the memory, and an MLP, and is mapped to the pixels of its patch.
Over a single token a softmax is 1 whatever query and key are: every patch would be told the same,
and query and key weights would be counted and never learn (F9). So a zero key stands beside the
memory, which turns the weight into sigmoid(q.k / sqrt(d)): a patch may look, or look away.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hjepa_lib.config.pixels import DecoderConfig
from hjepa_lib.models.transformer import Attention, feed_forward
from hjepa_lib.pixels.nets import patch_grid


class Look(nn.Module):
    """Cross-attention of (B, N, dim) tokens to one memory token and a key and value of zero."""

    def __init__(self, dim: int, heads: int, head_dim: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, heads * head_dim, bias=False)
        self.key_value = nn.Linear(dim, 2 * heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """x (B, N, dim), memory (B, 1, dim) -> (B, N, dim)."""
        q = self.query(x).unflatten(-1, (self.heads, -1))  # (B, N, heads, head_dim)
        k, v = self.key_value(memory).unflatten(-1, (2, self.heads, -1)).unbind(2)
        weight = torch.sigmoid((q * k).sum(dim=-1, keepdim=True) / q.shape[-1] ** 0.5)
        return self.dropout(self.out((weight * v).flatten(2)))


class DecoderBlock(nn.Module):
    """Self-attention among the patches, a look at the memory, MLP; each added to its input."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        dim, heads, head_dim = config.dim, config.heads, config.head_dim
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.attention = Attention(dim, heads, head_dim, config.dropout)
        self.look = Look(dim, heads, head_dim, config.dropout)
        self.mlp = feed_forward(dim, config.mlp_dim, config.dropout)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """x (B, N, dim), memory (B, 1, dim) -> (B, N, dim)."""
        x = x + self.attention(self.norm1(x))
        x = x + self.look(self.norm2(x), memory)
        return x + self.mlp(self.norm3(x))


class PatchDecoder(nn.Module):
    """Predicted frame in [0, 1] units (not clipped: the MSE keeps it there)."""

    def __init__(
        self,
        config: DecoderConfig,
        input_dim: int,
        channels: int,
        image_size: int | tuple[int, int],
    ) -> None:
        super().__init__()
        self.config = config
        self.grid = patch_grid(image_size, config.patch)
        self.memory = nn.Linear(input_dim, config.dim)
        self.memory_norm = nn.LayerNorm(config.dim)
        self.query = nn.Parameter(torch.zeros(self.grid[0] * self.grid[1], config.dim))
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.dim)
        self.pixels = nn.Linear(config.dim, channels * config.patch**2)

    def first_weights(self) -> None:
        """Patches begin different from each other, and the frame nearly black."""
        nn.init.normal_(self.query, std=1.0)
        nn.init.normal_(self.pixels.weight, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        memory = self.memory_norm(self.memory(x))[:, None]  # (B, 1, dim)
        tokens = self.query.expand(len(x), -1, -1)
        for block in self.blocks:
            tokens = block(tokens, memory)
        patches = self.pixels(self.norm(tokens))  # (B, rows * columns, C * patch * patch)
        (rows, columns), patch = self.grid, self.config.patch
        image = patches.unflatten(1, (rows, columns)).unflatten(3, (-1, patch, patch))
        image = image.permute(0, 3, 1, 4, 2, 5)  # (B, C, rows, patch, columns, patch)
        return image.flatten(4).flatten(2, 3)
