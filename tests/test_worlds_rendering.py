"""Frames equal the reference formula, the published bytes, and each other on any batch shape."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import seeded

from hjepa_lib import files
from hjepa_lib.worlds.layout import Layout, all_layouts
from hjepa_lib.worlds.rendering import render, render_reference

FIXTURE = json.loads((Path(__file__).parent / "fixtures" / "rendered_32.json").read_text())


@pytest.mark.parametrize("renderer", [render, render_reference])
def test_bytes_of_the_public_renderer(renderer):
    frames = renderer(torch.tensor(FIXTURE["locations"]), Layout.fixed())
    assert frames.shape == (32, 2, 65, 65) and frames.dtype == torch.uint8
    nhwc = frames.permute(0, 2, 3, 1).contiguous().numpy()
    assert files.sha256(nhwc.tobytes()) == FIXTURE["sha256"]


def test_fast_path_equals_the_direct_formula_at_4000_positions():
    """Bound of the design: 0.1 % of frames, one grey level."""
    position = torch.rand(4_000, 2, generator=seeded()) * 56 + 4
    position[:200] = position[:200].round()  # also whole and half pixels
    position[200:400] = position[200:400].floor() + 0.5
    layout = Layout.of(all_layouts()[np.arange(4_000) % 1125])
    for rows in torch.arange(4_000).split(1000):
        fast = render(position[rows], layout.index(rows)).int()
        gap = (fast - render_reference(position[rows], layout.index(rows)).int()).abs()
        assert int(gap.flatten(1).any(1).sum()) <= 1 and int(gap.max()) <= 1
    # also at and beyond the edges, and for sequences with one layout each
    edges = torch.tensor([[0.0, 0.0], [64.0, 64.0], [-3.0, 30.0], [2.4, 63.6], [500.0, -500.0]])
    edges, layout = edges.repeat(4, 1, 1), layout.index([0, 400, 800, 1124])
    frames = render(edges, layout)
    assert frames.shape == (4, 5, 2, 65, 65)
    assert torch.equal(frames, render_reference(edges, layout))
    for b in range(4):
        assert torch.equal(render(edges[b], layout.index([b])), frames[b])


def test_wall_pixels_x_right_y_down():
    walls = render(torch.tensor([[20.0, 40.0]]), Layout.of([[25, 30]]))[0, 1]
    assert set(walls.unique().tolist()) == {0, 255}
    assert (walls[20] == 255).nonzero()[:, 0].tolist() == [4, 24, 25, 26, 60]
    assert (walls[:, 25] == 0).nonzero()[:, 0].tolist() == list(range(26, 35))  # the door
    assert (walls[[4, 60]] == 255).all() and (walls[:, [4, 60]] == 255).all()
