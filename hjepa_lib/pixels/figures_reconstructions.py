"""Reconstruction pictures: stacked frames, true next frame, predicted next frame (FIG-1).

All frames are floats in [0, 1] and clipped there, whatever a decoder says (F14). The small files
that training writes every epoch are composed pixel by pixel; `grid` is the figure of the notebook.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from torch import Tensor

from hjepa_lib.figures.style import FigureError, headline, panels, styled
from hjepa_lib.files import write_atomic

SCALE, MARGIN, LABEL = 2, 8, 14  # px: enlargement, gap between panels, height of the captions
SAMPLES = 5
FIRST_SEED = 42


def sample_rows(rows: int, epoch: int, count: int = SAMPLES) -> Tensor:
    """The rows shown at `epoch`: a function of (rows, epoch) alone, so equal for every model."""
    generator = torch.Generator().manual_seed(FIRST_SEED + epoch)
    return torch.randperm(rows, generator=generator)[:count]


def rgb(frame: Tensor) -> np.ndarray:
    """(C, H, W) in [0, 1], C = 1 or 3 -> (H, W, 3) uint8, values outside clipped."""
    if frame.ndim != 3 or frame.shape[0] not in (1, 3):
        raise FigureError(f"a frame must be (1 or 3, H, W), got {tuple(frame.shape)}")
    pixels = (frame.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    return pixels.expand(3, -1, -1).permute(1, 2, 0).numpy()


def comparison(stack: Tensor, true: Tensor, predicted: Tensor) -> bytes:
    """PNG of (L, C, H, W) stacked frames, the true and the predicted next frame (C, H, W)."""
    frames = [*stack, true, predicted]
    captions = [f"t-{len(stack) - 1 - i}" if i < len(stack) - 1 else "t" for i in range(len(stack))]
    captions += ["true next", "predicted"]
    images = [rgb(frame).repeat(SCALE, axis=0).repeat(SCALE, axis=1) for frame in frames]
    height, width = images[0].shape[:2]
    canvas = Image.new(
        "RGB", (len(images) * (width + MARGIN) + MARGIN, height + LABEL + 2 * MARGIN), "white"
    )
    draw = ImageDraw.Draw(canvas)
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left = MARGIN + number * (width + MARGIN)
        draw.text((left, MARGIN // 2), caption, fill="black")
        canvas.paste(Image.fromarray(image), (left, MARGIN + LABEL))
    buffer = io.BytesIO()
    canvas.save(buffer, format="PNG")
    return buffer.getvalue()


def write_comparisons(
    folder: Path, epoch: int, stacks: Tensor, true: Tensor, predicted: Tensor
) -> list[Path]:
    """`epoch_{e}_sample_{n}_comparison.png` for each of n samples; stacks (n, L, C, H, W)."""
    return [
        write_atomic(
            folder / f"epoch_{epoch}_sample_{number}_comparison.png",
            comparison(stacks[number], true[number], predicted[number]),
        )
        for number in range(len(stacks))
    ]


@styled
def grid(rows: Mapping[str, Tensor], title: str = "") -> Figure:
    """One row of pictures per name, the same samples in every column; values (n, C, H, W)."""
    count = min(len(frames) for frames in rows.values())
    figure, axes = panels(len(rows), count, 1.25, 1.25)
    for number, (name, frames) in enumerate(rows.items()):
        line = axes[number * count : (number + 1) * count]
        for axis, frame in zip(line, frames, strict=False):
            axis.imshow(rgb(frame), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    headline(figure, title)
    return figure
