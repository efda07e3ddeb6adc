"""The H-JEPA workbook: small, tested parts for hierarchical latent world models.

Axis legend, used everywhere (batch first):

    B batch (trials in planning)   T time (states of a window)   H horizon (planned steps)
    N candidates of a planner      K ensemble members            D latent   Z level-2 stochastic
    A action                       C image channel               Hpx, Wpx image rows, columns
    S static part of the latent    G layouts of a batch

Positions and actions are (x, y) in px of the 65 x 65 image, x to the right, y down; frames are
uint8 in [0, 255], channels (dot, walls). Data flows one way: config, worlds, data, models,
training, planning, evaluation, runs, notebooks.

    import hjepa_lib
    agent = hjepa_lib.load("latest")  # a run's name, or "pretrained"
    control = agent.controller(goal_frame)
    actions = control.act(frame)  # the next (k, 2) px; carry them out, then call again
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hjepa_lib.planning.agent import Agent

try:
    __version__ = version("hjepa-lib")
except PackageNotFoundError:  # used from a checkout that is not installed
    __version__ = "0+unknown"


def load(run: str = "latest") -> Agent:
    """The trained agent of a run: a name, "latest", or a committed small one, "pretrained".

    "pretrained-maze" is that of mazes. Raises FileError or RunError, in one sentence, when the run
    or a part of it is missing.
    """
    from hjepa_lib.runs import machine
    from hjepa_lib.runs.run import Run
    from hjepa_lib.runs.stages import load_run

    machine.set_up()
    return load_run(Run.named(run))
