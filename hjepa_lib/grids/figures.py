"""Figures of the grid models: coloured grids."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from hjepa_lib.figures import style
from hjepa_lib.figures.data import frame_grid

PALETTE = (
    "#ECEEF1", "#0072B2", "#E69F00", "#009E73", "#C8102E", "#56B4E9", "#F0E442", "#CC79A7",
    "#7B4B2A", "#8A8F98", "#1B1F24",
)  # fmt: skip
"""Colours 0 (the background) to 10, told apart by lightness as well as hue."""
_CELL = 12  # px


def painted(grids: np.ndarray) -> np.ndarray:
    """Canvases (N, S, S) of colours -1..10 -> (N, 3, Hpx, Wpx) uint8, lines between the cells."""
    look = [[int(colour[k : k + 2], 16) for k in (1, 3, 5)] for colour in (*PALETTE, style.FAINT)]
    cells = np.moveaxis(np.array(look, np.uint8)[np.asarray(grids)], -1, 1)  # -1, padding, is last
    frames = cells.repeat(_CELL, -1).repeat(_CELL, -2)
    frames[..., ::_CELL, :] = frames[..., ::_CELL] = 255
    return frames


def show_grids(
    rows: Sequence[Sequence[np.ndarray]], columns: Sequence[str], labels: Sequence[str] = ()
) -> Figure:
    """Rows of canvases (S, S); `columns` above the first row, `labels` left of each row."""
    return frame_grid([painted(np.stack(row)) for row in rows], columns, labels, size=1.6)
