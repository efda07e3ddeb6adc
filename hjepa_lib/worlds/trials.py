"""Evaluation trials (start, goal, layout) that live in files, so that every method meets the same.

`trial_files/` has those of the protocols, which `make_trials` drew with the seeds 1000 to 1005, in
the order of `index.json`, which holds their hashes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hjepa_lib import files
from hjepa_lib.worlds.base import World
from hjepa_lib.worlds.layout import Layout
from hjepa_lib.worlds.two_rooms import TwoRooms, inside

SPLITS = ("validation", "test")
ROWS = 500
"""Rows of every committed file."""

_FOLDER = Path(__file__).with_name("trial_files")


class Trials(NamedTuple):
    """n evaluation tasks; `sha256` identifies the whole file that they are the first rows of."""

    start: Tensor  # (n, 2) px
    goal: Tensor  # (n, 2) px
    layout: Layout  # n rows
    name: str
    sha256: str
    numbers: tuple[int, ...]  # of the trials in their file, which their noise belongs to
    world: type[World] = TwoRooms

    @staticmethod
    def of(
        start: Tensor, goal: Tensor, layout: Layout, name: str, world: type[World] = TwoRooms,
        first: int = 0,
    ) -> Trials:  # fmt: skip
        """Numbered from `first`; hashed: float32 columns start, goal and the int16 one layout."""
        columns = ((start, "<f4"), (goal, "<f4"), (layout.pairs(), "<i2"))
        parts = [np.ascontiguousarray(part.numpy(), kind).tobytes() for part, kind in columns]
        numbers = tuple(range(first, first + len(start)))
        return Trials(start, goal, layout, name, files.sha256(b"".join(parts)), numbers, world)

    @property
    def count(self) -> int:
        """Number of trials n (`len` of a NamedTuple would count its fields)."""
        return self.start.shape[0]

    def first(self, n: int) -> Trials:
        """The first n trials; WorkbookError when there are fewer."""
        if not 1 <= n <= self.count:
            raise files.WorkbookError(f"{self.name} has {self.count} trials, {n} were asked for")
        return self.pick(range(n))

    def pick(self, places: Sequence[int]) -> Trials:
        """Some of these trials, under the numbers that they have in their file."""
        places = list(places)
        start, goal, layout = self.start[places], self.goal[places], self.layout.index(places)
        numbers = tuple(self.numbers[place] for place in places)
        return self._replace(start=start, goal=goal, layout=layout, numbers=numbers)

    def begin(self, dynamics: str, seed: int) -> World:
        """The world of these trials, each at its start, with the noise of its number."""
        world = self.world(self.layout, dynamics, seed=seed)
        world.rows = self.numbers
        world.reset(self.start)
        return world


def make_trials(layouts: np.ndarray, n: int, seed: int) -> Trials:
    """n new trials in rooms drawn from `layouts` (K, 2), a function of the seed (PL2)."""
    if n < 1:
        raise files.WorkbookError(f"n must be at least 1, got {n}")
    generator = torch.Generator().manual_seed(seed)
    layout = Layout.of(layouts[torch.randint(len(layouts), (n,), generator=generator).numpy()])
    return Trials.of(*TwoRooms(layout).sample_start_goal(generator), layout, f"made_{seed}")


def own_trials(world: type[World], split: str, n: int) -> Trials:
    """The first n of the 500 trials that an own world draws from the split's seed."""
    if split not in SPLITS:
        raise files.WorkbookError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
    generator = torch.Generator().manual_seed(1000 + SPLITS.index(split))
    layout, name = Layout.of(np.zeros((ROWS, 2))), f"{world.__name__}_{split}"
    drawn = world(layout).sample_start_goal(generator)
    return Trials.of(*drawn, layout, name, world).first(n)


def save_trials(path: str | Path, trials: Trials) -> Path:
    """Write trials as .npz with columns start, goal (n, 2) float32 and layout (n, 2) int16."""
    pairs = trials.layout.pairs().numpy().astype(np.int16)
    return files.save_npz(path, start=trials.start, goal=trials.goal, layout=pairs)


def read_trials(path: str | Path) -> Trials:
    """Trials of a file written by `save_trials`; raises `FileError` naming what is wrong."""
    arrays = files.load_npz(path, ("start", "goal", "layout"))
    n = len(arrays["start"])
    for name, values in arrays.items():
        if values.shape != (n, 2) or n == 0:
            raise files.FileError(f"{path}: {name} must be ({n or 'n'}, 2), got {values.shape}")
    start, goal = (torch.from_numpy(arrays[name].astype(np.float32)) for name in ("start", "goal"))
    layout = Layout.of(arrays["layout"])
    if not (inside(start, layout) & inside(goal, layout)).all():  # nor are NaN
        raise files.FileError(f"{path}: a start or goal lies in a wall or outside the rooms")
    return Trials.of(start, goal, layout, Path(path).stem)


def load_trials(protocol: str, split: str, n: int = 100) -> Trials:
    """The first n committed trials of a protocol and split, hash verified.

    WorkbookError for unknown names or n above 500, FileError for a changed file.
    """
    name, known = f"{protocol}_{split}", files.read_json(_FOLDER / "index.json")
    if name not in known:
        raise files.WorkbookError(f"trials must be one of {', '.join(known)}; got {name}")
    trials = read_trials(_FOLDER / f"{name}.npz")
    if trials.sha256 != known[name]:
        raise files.FileError(f"trial file {name}.npz does not match its recorded SHA-256")
    return trials.first(n)
