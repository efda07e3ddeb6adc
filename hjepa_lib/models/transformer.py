"""Pre-norm transformer blocks of the pixel models (arXiv 1706.03762; ViT, arXiv 2010.11929).

    x <- x + Attention(LN(x));   x <- x + MLP(LN(x));   LN after the last block

Dropout acts on what a sub-layer adds: not on attention weights (the fused kernel then serves
training as well), nor on the wide hidden layer, where drawing it takes long on a CPU.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Self-attention over (B, N, dim) with `heads` heads of width `head_dim`."""

    def __init__(self, dim: int, heads: int, head_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.qkv = nn.Linear(dim, 3 * heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """`mask` broadcasts to (B, heads, N, N), True where attending is allowed."""
        parts = self.qkv(x).unflatten(-1, (3, self.heads, self.head_dim))
        # The CPU kernel is three times slower in bf16 than in fp32; elsewhere autocast decides.
        cpu = x.device.type == "cpu"
        with torch.autocast("cpu", enabled=False) if cpu else contextlib.nullcontext():
            q, k, v = ((p.float() if cpu else p).transpose(1, 2) for p in parts.unbind(2))
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        # (B, heads, N, head_dim) -> (B, N, heads * head_dim)
        return self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))  # (B, N, dim)


class Block(nn.Module):
    """Self-attention and a GELU MLP, each added to its input."""

    def __init__(
        self, dim: int, heads: int, head_dim: int, mlp_dim: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, heads, head_dim, dropout)
        self.mlp = feed_forward(dim, mlp_dim, dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        x = x + self.attention(self.norm1(x), mask, causal)
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """`depth` blocks and a last LayerNorm: (B, N, dim) -> (B, N, dim). It adds no positions."""

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        head_dim: int,
        mlp_dim: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(dim, heads, head_dim, mlp_dim, dropout) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        for block in self.blocks:
            x = block(x, mask, causal)
        return self.norm(x)


def feed_forward(dim: int, hidden: int, dropout: float = 0.0) -> nn.Sequential:
    """dim -> hidden -> dim with GELU."""
    return nn.Sequential(
        nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim), nn.Dropout(dropout)
    )
