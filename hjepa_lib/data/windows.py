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


def first_states(lengths: Tensor, length: int) -> Tensor:
    """Numbers of the states at which windows of `length` states begin, of trajectories end to end.

    WorkbookError when no trajectory has `length` states.
    """
    if (longest := int(lengths.max())) < length:
        raise WorkbookError(f"no trajectory has {length} states: the longest has {longest}")
    index = torch.arange(int(lengths.sum()))
    return index[index + length <= lengths.cumsum(0).repeat_interleave(lengths)]


class Groups:
    """Members (M,) of groups (M,) in 0..G-1, each group in one piece."""

    def __init__(self, members: Tensor, group: Tensor, count: int = 0) -> None:
        self.members = members[group.argsort(stable=True)]
        self.counts = group.bincount(minlength=count)  # (G,)
        self._begin = self.counts.cumsum(0) - self.counts

    def draw(self, group: Tensor, share: Tensor) -> Tensor:
        """(B,) the members at these shares in [0, 1) of the groups (B,), which have some."""
        return self.members[self._begin[group] + (share * self.counts[group]).long()]


class Windows:
    """All windows of `length` states of a set of trajectories, layout by layout."""

    def __init__(self, trajectories: Trajectories, length: int) -> None:
        self.length, self.trajectories = length, trajectories
        first = first_states(trajectories.lengths, length)
        code = trajectories.layouts().numbers()[trajectories.row_of(first)]
        self._groups = Groups(first, code.unique(return_inverse=True)[1])

    def __len__(self) -> int:
        return len(self._groups.members)

    def at(self, index: Tensor) -> WindowBatch:
        """Windows number `index` (B,) int64 in [0, len)."""
        return self._from(self._groups.members[index])

    def _from(self, first: Tensor) -> WindowBatch:
        states, data = first[:, None] + torch.arange(self.length), self.trajectories  # (B, T)
        parts = data.positions[states], data.actions[states[:, :-1]]
        record = data.record and data.record.take(states)
        return WindowBatch(*parts, data.layouts(data.row_of(first)), data.world, record)

    def sample(
        self, batch: int, generator: torch.Generator, layouts_per_batch: int = 0
    ) -> WindowBatch:
        """`batch` random windows, equally likely.

        With `layouts_per_batch` K > 0 of K random layouts (or all), i filling rows i, i + K, ...
        """
        if not layouts_per_batch:
            return self.at(torch.randint(len(self), (batch,), generator=generator))
        groups = len(self._groups.counts)
        chosen = torch.randperm(groups, generator=generator)[:layouts_per_batch]
        share = torch.rand(batch, generator=generator, dtype=torch.float64)
        return self._from(self._groups.draw(chosen[torch.arange(batch) % len(chosen)], share))
