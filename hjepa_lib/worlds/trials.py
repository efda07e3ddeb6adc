"""Evaluation trials (start, goal, layout) that live in files, so that every method meets the same.

`trial_files/` has those of the protocols, which `make_trials` drew with the seeds 1000 to 1007, and
of the built-in worlds, which `draw_trials` drew; `index.json` holds their hashes.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hjepa_lib import files
from hjepa_lib.config import WORLDS
from hjepa_lib.worlds.base import World, find_world, try_out
from hjepa_lib.worlds.layout import Layout
from hjepa_lib.worlds.two_rooms import TwoRooms, shifted

SPLITS = ("validation", "test")

_FOLDER = Path(__file__).with_name("trial_files")


class Trials(NamedTuple):
    """n evaluation tasks; `sha256` identifies the whole file that they are the first rows of."""

    start: Tensor  # (n, 2) px, in another world its states (n, N)
    goal: Tensor  # likewise
    layout: Layout  # n rows
    name: str
    sha256: str
    numbers: tuple[int, ...]  # of the trials in their file, which their noise belongs to
    world: type[World] = TwoRooms

    @staticmethod
    def of(
        start: Tensor, goal: Tensor, layout: Layout, name: str, world: type[World] = TwoRooms,
        first: int = 0,
    ) -> "Trials":  # fmt: skip
        """Numbered from `first`; hashed: float32 columns start, goal and int16 layout."""
        columns = ((start, "<f4"), (goal, "<f4"), (layout.pairs(), "<i2"))
        parts = [np.ascontiguousarray(part.numpy(), kind).tobytes() for part, kind in columns]
        numbers = tuple(range(first, first + len(start)))
        return Trials(start, goal, layout, name, files.sha256(b"".join(parts)), numbers, world)

    @property
    def count(self) -> int:
        """n (`len` of a NamedTuple would count its fields)."""
        return self.start.shape[0]

    def first(self, n: int) -> "Trials":
        """The first n trials; WorkbookError when there are fewer."""
        if not 1 <= n <= self.count:
            raise files.WorkbookError(f"{self.name} has {self.count} trials, {n} were asked for")
        return self.pick(range(n))

    def pick(self, places: Sequence[int]) -> "Trials":
        """Some of these trials, under their numbers in the file."""
        places = list(places)
        start, goal, layout = self.start[places], self.goal[places], self.layout.index(places)
        numbers = tuple(self.numbers[place] for place in places)
        return self._replace(start=start, goal=goal, layout=layout, numbers=numbers)

    def begin(self, dynamics: str, seed: int) -> World:
        """Their world, each at its start, with the noise of its number."""
        world = self.world(self.layout, dynamics, seed=seed)
        world.rows, world.goal = self.numbers, self.goal
        world.reset(self.start)
        return world


def make_trials(layouts: np.ndarray, n: int, seed: int) -> Trials:
    """n new trials in rooms of `layouts` (K, 2), a function of the seed (PL2)."""
    if n < 1:
        raise files.WorkbookError(f"n must be at least 1, got {n}")
    generator = torch.Generator().manual_seed(seed)
    layout = Layout.of(layouts[torch.randint(len(layouts), (n,), generator=generator).numpy()])
    return Trials.of(*TwoRooms(layout).sample_start_goal(generator), layout, f"made_{seed}")


def draw_trials(world: type[World], split: str, task_set: str = "") -> Trials:
    """All trials of a world's split, drawn from its seed: what a committed file of it holds.

    WorkbookError for an unknown split or set, and where a task cannot be solved.
    """
    files.one_of("split", split, SPLITS)
    if task_set and task_set not in world.task_sets:
        known = ", ".join(world.task_sets) or "there is none"
        raise files.WorkbookError(f"{world.__name__} has no task_set {task_set!r}: {known}")
    generator = torch.Generator().manual_seed(1000 + SPLITS.index(split))
    layout, *ends = world.draw_tasks(task_set, split, world.trials[split], generator)
    _check(world.__name__, world(layout), *ends)
    return Trials.of(*ends, layout, f"{world.__name__}_{split}", world)


def load_trials(source: str, split: str, n: int = 100, task_set: str = "") -> Trials:
    """The first n trials of a protocol of Two Rooms or of another world, named as `data.source`.

    Committed ones, their hash verified, or those that an own world draws. WorkbookError for unknown
    names or more than there are, FileError for a changed file.
    """
    world = find_world(source)
    if world is not None and source not in WORLDS:
        try_out(source)
        return draw_trials(world, split, task_set).first(n)
    name = trials_name(source, split, task_set)
    return _committed(_FOLDER, name, world or shifted(source)).first(n)


def trials_hash(source: str, split: str, n: int, task_set: str = "") -> str:
    """`sha256` of `load_trials`; of committed ones without what their world needs to be built."""
    known = files.read_json(_FOLDER / "index.json").get(trials_name(source, split, task_set))
    enough = source in WORLDS and n <= find_world(source).trials.get(split, 0)
    return known if known and enough else load_trials(source, split, n, task_set).sha256


def trials_name(source: str, split: str, task_set: str = "") -> str:
    """Of a file of trials, without its ending; those of P3 serve its shifted worlds too."""
    world = find_world(source)
    begin = source if world is None else world.trial_file or source
    begin = "p3" if source.startswith("p3_") else begin
    return "_".join(filter(None, (begin, split, task_set)))


def save_trials(path: str | Path, trials: Trials) -> Path:
    """Write trials as .npz with columns start, goal (n, N) float32 and layout (n, 2) int16."""
    pairs = trials.layout.pairs().numpy().astype(np.int16)
    return files.save_npz(path, start=trials.start, goal=trials.goal, layout=pairs)


def read_trials(path: str | Path, world: type[World] = TwoRooms) -> Trials:
    """Trials of a file written by `save_trials`; raises `FileError` naming what is wrong."""
    arrays = files.load_npz(path, ("start", "goal", "layout"))
    n = len(arrays["start"])
    for name, values in arrays.items():
        width = 2 if name == "layout" else world.state_size
        if values.shape != (n, width) or n == 0:
            wanted = f"({n or 'n'}, {width})"
            raise files.FileError(f"{path}: {name} must be {wanted}, got {values.shape}")
    if (arrays["layout"] < 0).any():
        raise files.FileError(f"{path}: numbers of layouts must be 0 or more")
    start, goal = (torch.from_numpy(arrays[name].astype(np.float32)) for name in ("start", "goal"))
    layout = Layout.of(arrays["layout"])
    _check(path, world(layout), start, goal)
    return Trials.of(start, goal, layout, Path(path).stem, world)


def _check(where: str | Path, world: World, start: Tensor, goal: Tensor) -> None:
    if not (world.free(start) & world.free(goal)).all():  # nor are NaN
        raise files.FileError(f"{where}: a start or goal lies in a wall or outside the rooms")
    if not world.oracle_length(start, goal).isfinite().all():
        raise files.FileError(f"{where}: no way leads from some start to its goal")


@functools.lru_cache(maxsize=64)  # an experiment asks for the same ones in every cell
def _committed(folder: Path, name: str, world: type[World]) -> Trials:
    known = files.read_json(folder / "index.json")
    files.one_of("trials", name, known)
    trials = read_trials(folder / f"{name}.npz", world)
    if trials.sha256 != known[name]:
        raise files.FileError(f"trial file {name}.npz does not match its recorded SHA-256")
    return trials
