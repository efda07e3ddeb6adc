"""The world: rendering against the direct formula, and generation of trajectories (time only)."""

from __future__ import annotations

import torch

from hjepa_lib.data.recipes import generate
from hjepa_lib.data.windows import Windows
from hjepa_lib.workbench.bench.level1 import SAMPLE
from hjepa_lib.workbench.timing import Case, relative_difference
from hjepa_lib.worlds.rendering import render, render_reference


def world_cases(frames: int, transitions: int) -> list[Case]:
    """Two cases of the stated sizes."""
    length = 17
    windows = Windows(generate("good", SAMPLE), length)
    batch = windows.sample(frames // length, torch.Generator().manual_seed(0))
    work = (batch.positions, batch.layout)
    return [
        Case(
            "rendering", "direct formula", "patch renderer",
            lambda: render_reference(*work), lambda: render(*work), relative_difference,
            batch.positions[..., 0].numel(), "frames",
        ),
        Case(
            "data generation", "", "vectorised simulation",
            None, lambda: generate("good", transitions), None, transitions, "transitions",
        ),
    ]  # fmt: skip
