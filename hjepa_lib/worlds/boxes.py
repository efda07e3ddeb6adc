"""Worlds whose walls are boxes along the axes: sliding, frames and exact shortest paths, batched.

A box is (low x, low y, high x, high y) px, edges included. A dot is a point that keeps `GAP` px
away; a step moves along x, then along y, each until a box is in the way, so it never tunnels.
"""

import functools
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse.csgraph import shortest_path
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from hjepa_lib.worlds.base import World, bound
from hjepa_lib.worlds.layout import Layout, paint

GAP = 0.01
_FAR = 1e3  # px: boxes of the border reach so far beyond the frame


def grid_boxes(closed: np.ndarray, size: float, margin: float = 0.0) -> np.ndarray:
    """Boxes (M, 4) of the closed cells (rows, columns) bool, `size` px each, and of what is around.

    Cell (i, j) begins at pixel margin + size * j of a row, margin + size * i of a column.
    """
    rows, columns = closed.shape
    spans: dict[tuple[int, int], list[list[int]]] = {}  # columns of a run -> rows it goes through
    for i, row in enumerate(closed):
        edges = np.flatnonzero(np.diff(np.pad(row.astype(int), 1)))
        for run in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            through = spans.setdefault(run, [])
            if through and through[-1][1] == i:
                through[-1][1] = i + 1
            else:
                through.append([i, i + 1])
    cells = [(a, top, b, end) for (a, b), through in spans.items() for top, end in through]
    boxes = margin + size * np.array(cells, np.float64).reshape(-1, 4)
    border = around(margin, margin + size * columns, margin + size * rows)
    return (np.concatenate([boxes, border]) - 0.5).astype(np.float32)


def around(low: float, right: float, bottom: float) -> list[tuple[float, ...]]:
    """Four boxes around the place from (low, low) to (right, bottom)."""
    return [
        (-_FAR, -_FAR, low, _FAR), (right, -_FAR, _FAR, _FAR),
        (-_FAR, -_FAR, _FAR, low), (-_FAR, bottom, _FAR, _FAR),
    ]  # fmt: skip


def open_cells(closed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Open cells (n, 2), and the steps (n, n) between them, infinite without a way."""
    cells = np.argwhere(~closed)
    beside = np.abs(cells[:, None] - cells).sum(-1) == 1
    return cells, shortest_path(beside.astype(float), unweighted=True)


def inside(place: Tensor, boxes: Tensor) -> Tensor:
    """(B, ...) bool: whether places (B, ..., 2) are in a box (B, M, 4) of their row."""
    boxes = boxes.reshape(len(boxes), *[1] * (place.ndim - 2), *boxes.shape[1:])
    low, high = boxes.split(2, -1)
    here = place[..., None, :]
    return ((here >= low) & (here <= high)).all(-1).any(-1)


def slide(place: Tensor, move: Tensor, boxes: Tensor) -> Tensor:
    """Places (B, 2) after moves (B, 2) among boxes (B, M, 4), first along x, then along y."""
    for axis in (0, 1):
        here, other = place[:, axis, None], place[:, 1 - axis, None]  # (B, 1)
        low, high = boxes[..., axis], boxes[..., axis + 2]
        # Almost the gap: who is nearer is stopped, and who slides along a wall is not.
        beside = other >= boxes[..., 1 - axis] - 0.9 * GAP
        beside &= other <= boxes[..., 3 - axis] + 0.9 * GAP
        most = torch.where(beside & (low > here), low - GAP, torch.inf).amin(1)
        least = torch.where(beside & (high < here), high + GAP, -torch.inf).amax(1)
        # A start closer than the gap stays where it is rather than being pushed off.
        target = (here[:, 0] + move[:, axis]).clamp(
            torch.minimum(least, here[:, 0]), torch.maximum(most, here[:, 0])
        )
        place = torch.stack((target, place[:, 1]) if axis == 0 else (place[:, 0], target), -1)
    return place


def visible(start: Tensor, end: Tensor, boxes: Tensor, margin: float = GAP / 2) -> Tensor:
    """(B, P) bool: segments, (B, P, 2) to (B, P, 2), keep `margin` px from boxes (B, M, 4)."""
    enters, leaves = 0.0, 1.0  # shares of the segment
    for axis in (0, 1):
        here = start[:, :, None, axis]  # (B, P, 1)
        run = end[:, :, None, axis] - here
        pace = 1 / torch.where(run.abs() < 1e-9, 1e-9, run)
        low, high = boxes[:, None, :, axis] - margin, boxes[:, None, :, axis + 2] + margin
        first, second = (low - here) * pace, (high - here) * pace  # (B, P, M)
        enters = torch.minimum(first, second).clamp_(min=enters)
        leaves = torch.maximum(first, second).clamp_(max=leaves)
    return ~(enters < leaves).any(-1)


class Graph(NamedTuple):
    """Where shortest paths among boxes may bend: V places beside their corners."""

    nodes: Tensor  # (V, 2) px
    between: Tensor  # (V, V) px of the shortest way, infinite without any

    @classmethod
    def of(cls, boxes: np.ndarray, clearance: float) -> "Graph":
        """The graph of boxes (M, 4); ways pass corners at `clearance` px along each axis."""
        low, high = boxes[:, :2] - clearance, boxes[:, 2:] + clearance
        x, y = (np.stack((low[:, axis], high[:, axis]), -1) for axis in (0, 1))
        corners = np.stack((x[:, [0, 1, 0, 1]], y[:, [0, 0, 1, 1]]), -1).reshape(-1, 2)
        walls = torch.from_numpy(boxes)[None]
        nodes = torch.from_numpy(corners[(np.abs(corners) < _FAR / 2).all(1)].astype(np.float32))
        nodes = nodes[~inside(nodes[None], walls)[0]].unique(dim=0)
        if not len(nodes):  # no way bends: one that nobody sees
            return cls(torch.full((1, 2), torch.nan), torch.zeros(1, 1))
        count = len(nodes)
        ends = nodes.repeat_interleave(count, 0), nodes.repeat(count, 1)
        seen = visible(ends[0][None], ends[1][None], walls)[0]
        lengths = torch.where(seen, (ends[0] - ends[1]).double().norm(dim=-1), 0)  # 0: no edge
        ways = shortest_path(lengths.reshape(count, count).numpy(), directed=False)
        return cls(nodes, torch.from_numpy(ways).float())


_cached = functools.lru_cache(maxsize=1024)  # rows of layouts, for each world


class BoxWorld(World):
    """B dots among boxes; a world of this kind says `boxes_of` and tasks.

    Its state is the place, a step a displacement; channel 1 has the walls.
    """

    slides = True
    clearance = 0.5  # px that the oracle keeps from corners, along each axis

    @classmethod
    def boxes_of(cls, row: tuple[int, int]) -> np.ndarray:
        """Boxes (M, 4) px of a layout's row, the border's included; called once a row."""

    @classmethod
    @_cached
    def _boxes(cls, row: tuple[int, int]) -> np.ndarray:
        return cls.boxes_of(row)

    @classmethod
    @_cached
    def _picture(cls, row: tuple[int, int]) -> Tensor:  # (Hpx, Wpx) uint8, 255 where a box is
        _, height, width = cls.frame_shape
        down, across = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        pixels = torch.stack((across, down), -1).reshape(1, -1, 2).float()
        found = inside(pixels, torch.from_numpy(cls._boxes(row))[None])
        return found.reshape(height, width).to(torch.uint8) * 255

    @classmethod
    @_cached
    def _graph(cls, row: tuple[int, int], clearance: float) -> Graph:
        return Graph.of(cls._boxes(row), clearance)

    def __init__(self, layout: Layout, dynamics: str = "slide", seed: int = 0) -> None:
        self.layout, self.seed = layout, seed  # B and the device are the layout's
        self.rows, self.device = range(layout.batch), layout.wall_x.device
        self.position = torch.full((layout.batch, self.state_size), torch.nan, device=self.device)
        pairs, self.map = layout.pairs().unique(dim=0, return_inverse=True)  # (K, 2), (B,)
        self._known = [tuple(map(int, pair)) for pair in pairs.tolist()]
        self._graphs: dict[float, Graph] = {}  # of a clearance
        self._ahead: dict[float, tuple[Tensor, Tensor]] = {}  # goals, and px (B, V) from nodes

    @functools.cached_property
    def boxes(self) -> Tensor:
        """(B, M, 4) px; rows with fewer have some beyond everything."""
        parts = [torch.from_numpy(self._boxes(row)) for row in self._known]
        return pad_sequence(parts, True, 2 * _FAR).to(self.device)[self.map]

    def _ways(self, clearance: float) -> Graph:
        """Graphs of the rows: (B, V, 2), (B, V, V)."""
        if clearance not in self._graphs:
            found = [self._graph(row, clearance) for row in self._known]
            nodes = pad_sequence([one.nodes for one in found], True, torch.nan)
            count, gap = nodes.shape[1], torch.inf
            rows = [pad(one.between, (0, count - len(one.nodes)), value=gap) for one in found]
            between = pad_sequence(rows, True, gap)
            whole = (part.to(self.device)[self.map] for part in (nodes, between))
            self._graphs[clearance] = Graph(*whole)
        return self._graphs[clearance]

    def free(self, state: Tensor) -> Tensor:
        """(B,) bool: finite and in no wall."""
        place = self.xy(state)
        return state.isfinite().all(-1) & ~inside(place, self.boxes)

    def crosses_wall(self, here: Tensor, there: Tensor) -> Tensor:
        """(B, P) bool: neither straight nor along x, then y, between places (B, P, 2)."""
        bend = torch.stack((there[..., 0], here[..., 1]), -1)
        along = visible(here, bend, self.boxes) & visible(bend, there, self.boxes)
        return ~(along | visible(here, there, self.boxes))

    def reset(self, position: Tensor) -> Tensor:
        """Put the dots at states (B, N)."""
        self.position = position.to(self.device).clone()
        return self.position

    def step(self, action: Tensor) -> Tensor:
        """Move by `action` (B, 2) px."""
        self.position = slide(self.position, action, self.boxes)
        return self.position

    def render(self, position: Tensor | None = None) -> Tensor:
        """Frames (B, ..., C, Hpx, Wpx) uint8 of states."""
        return self._frames(self.position if position is None else position)

    def _frames(self, state: Tensor) -> Tensor:
        return paint(self.xy(state), self.walls)

    @functools.cached_property
    def walls(self) -> Tensor:
        """Wall channel (B, Hpx, Wpx) uint8."""
        pictures = torch.stack([self._picture(row) for row in self._known])
        return pictures.to(self.device)[self.map]

    def route(self, start: Tensor, goal: Tensor, clearance: float) -> tuple[Tensor, Tensor]:
        """Length (B,) px of the shortest path between places (B, 2), and its first bend (B, 2)."""
        nodes, between = self._ways(clearance)

        def seen(place: Tensor) -> Tensor:  # (B, V) px to the nodes in sight, else infinite
            here = place[:, None].expand_as(nodes)
            gap = (nodes - here).norm(dim=-1)
            return torch.where(visible(here, nodes, self.boxes) & ~gap.isnan(), gap, torch.inf)

        known, ahead = self._ahead.get(clearance, (None, None))
        if known is None or not torch.equal(known, goal):  # goals stay, starts move
            ahead = (between + seen(goal)[:, None]).amin(-1)  # (B, V)
            self._ahead[clearance] = goal.clone(), ahead
        gap = seen(start)
        total = torch.where(gap < GAP, torch.inf, gap + ahead)  # not the node that it stands on
        length, best = total.min(-1)
        bend = nodes[torch.arange(len(nodes), device=self.device), best]
        straight = visible(start[:, None], goal[:, None], self.boxes)[:, 0]
        length = torch.where(straight, (goal - start).norm(dim=-1), length)
        lost = straight | length.isinf()
        return length, torch.where(lost[:, None], goal, bend)

    def oracle_length(self, start: Tensor, goal: Tensor) -> Tensor:
        """Shortest path (B,) px of a point."""
        return self.route(self.xy(start), self.xy(goal), 2 * GAP)[0]

    def oracle_action(self, goal: Tensor, cap: float) -> Tensor:
        """Displacement (B, 2) along the shortest path that clears the corners, within `cap`."""
        here = self.xy(self.position)
        move = self.route(here, self.xy(goal), self.clearance)[1] - here
        return bound(move, cap, self.action_ball)
