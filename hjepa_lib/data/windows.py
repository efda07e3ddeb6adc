"""Training windows of T states; none crosses the end of a trajectory (F6)."""

from typing import NamedTuple

import torch
from torch import Tensor

from hjepa_lib.data.trajectories import Record, Trajectories
from hjepa_lib.files import WorkbookError
from hjepa_lib.worlds.base import World
from hjepa_lib.worlds.layout import Layout
from hjepa_lib.worlds.two_rooms import TwoRooms


class WindowBatch(NamedTuple):
    """B windows of T states; `layout` has B rows."""

    positions: Tensor  # (B, T, N) states of the world
    actions: Tensor  # (B, T - 1, A) px
    layout: Layout
    world: type[World] = TwoRooms
    record: Record | None = None

    def frames(self, device: torch.device | str) -> Tensor:
        """(B, T, C, Hpx, Wpx) uint8, read now or rendered on `device`."""
        if self.record is not None:
            return self.record.frames(device)
        return self.world(self.layout.to(device)).render(self.positions.to(device))


class Windows:
    """All windows of `length` states of a set of trajectories."""

    def __init__(self, trajectories: Trajectories, length: int) -> None:
        """WorkbookError when no trajectory has `length` states."""
        self.length, self.trajectories = length, trajectories
        # Trajectories grouped by layout, so that the windows of one layout are one range.
        code = trajectories.layouts().numbers()
        self._order = code.argsort(stable=True)
        count = (trajectories.lengths - length + 1).clamp_min(0)[self._order]
        self._ends = count.cumsum(0)
        self._shift = trajectories.starts[self._order] + count - self._ends  # window -> first state
        if not len(self):
            longest = int(trajectories.lengths.max())
            raise WorkbookError(
                f"no window of {length} states: the longest trajectory has {longest}"
            )
        # Window indices at which a new layout begins, with 0 and the total; no empty groups.
        code = code[self._order]
        last = torch.cat((code[1:] != code[:-1], torch.tensor([True])))
        self._group_ends = torch.cat((torch.tensor([0]), self._ends[last])).unique()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def at(self, index: Tensor) -> WindowBatch:
        """Windows number `index` (B,) int64 in [0, len)."""
        place = torch.searchsorted(self._ends, index, right=True)
        first = index + self._shift[place]
        states, data = first[:, None] + torch.arange(self.length), self.trajectories  # (B, T)
        parts = data.positions[states], data.actions[states[:, :-1]]
        record = data.record and data.record.take(states)
        return WindowBatch(*parts, data.layouts(self._order[place]), data.world, record)

    def sample(
        self, batch: int, generator: torch.Generator, layouts_per_batch: int = 0
    ) -> WindowBatch:
        """`batch` random windows, equally likely.

        With `layouts_per_batch` K > 0 of K random layouts (or all), i filling rows i, i + K, ...
        """
        if not layouts_per_batch:
            return self.at(torch.randint(len(self), (batch,), generator=generator))
        groups = len(self._group_ends) - 1
        chosen = torch.randperm(groups, generator=generator)[:layouts_per_batch]
        group = chosen[torch.arange(batch) % len(chosen)]  # (B,)
        low, high = self._group_ends[group], self._group_ends[group + 1]
        share = torch.rand(batch, generator=generator, dtype=torch.float64)
        return self.at(low + ((high - low) * share).long())
