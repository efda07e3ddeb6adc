"""The stages of a run up to the trained agent: data, level 1, distance head, level 2, level 3.

A training is a generator of reports: a notebook draws on the way, the command line exhausts it.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from hjepa_lib.config import Config, ConfigError, Level1Config, Level2Config, from_dict, to_dict
from hjepa_lib.data.normaliser import Normaliser
from hjepa_lib.data.published import acquire
from hjepa_lib.data.trajectories import Trajectories
from hjepa_lib.data.windows import Windows
from hjepa_lib.evaluation import played_cap, unplayed, world_of
from hjepa_lib.evaluation.offline import recorded_planning
from hjepa_lib.evaluation.openloop import probe_errors
from hjepa_lib.files import read_json, write_json
from hjepa_lib.models.checkpoint import TrainedMacro, fingerprint, load_part, save_part
from hjepa_lib.models.distance import Distance, LatentGeometry
from hjepa_lib.models.level1 import Jepa
from hjepa_lib.models.level2 import HJepa, Level2
from hjepa_lib.models.policies import GoalPolicy
from hjepa_lib.planning.agent import Agent, load_agent
from hjepa_lib.runs import machine
from hjepa_lib.runs.keys import core_stages, is_joint, wanted_stages
from hjepa_lib.runs.notebooks import Say, since
from hjepa_lib.runs.places import RunError
from hjepa_lib.runs.run import Run
from hjepa_lib.runs.workspace import Workspace
from hjepa_lib.training import distributed
from hjepa_lib.training.distance import train_distance
from hjepa_lib.training.latents import LatentStore
from hjepa_lib.training.level1 import pretrain_level1, refine_predictors, train_level1
from hjepa_lib.training.level2 import macro_box, train_joint, train_level2, typical_cost
from hjepa_lib.training.local import centre_places, train_local, train_places
from hjepa_lib.training.loop import Fit, Report
from hjepa_lib.training.mover import find_mover, train_foresight
from hjepa_lib.training.policies import train_policy
from hjepa_lib.training.probes import train_probe
from hjepa_lib.worlds import TwoRooms

FLAT = ("l1", "distance")
"""What the flat planner needs."""


def train(ws: Workspace, name: str) -> Iterator[Report]:
    """The training `name` in this run; nothing when it is done or disabled."""
    for stage in wanted_stages(ws.config):
        if stage.name == name:
            yield from ws.make(stage)


def make_data_stage(ws: Workspace, folder: Path) -> None:
    """The trajectories, generated, downloaded, recorded or an own world's; what normalises them."""
    config = ws.config
    data = acquire(config.data, config.seed, folder)
    data.save(folder)
    train, _ = data.split(config.data.val_fraction, config.seed)
    write_json(folder / "normaliser.json", to_dict(Normaliser.fit(train, config.seed)))
    if "fallback" in data.meta:
        ws.run.note("data_fallback", data.meta["fallback"])


def make_data(ws: Workspace) -> Trajectories:
    """The trajectories of this run, made when it has none."""
    return Trajectories.load(ws.obtain(core_stages(ws.config)["data"]))


def load_data(ws: Workspace) -> tuple[Trajectories, Trajectories | None, Normaliser]:
    """(train, validation, normaliser), made where missing; None: nothing is held out."""
    data = make_data(ws)
    train, validation = data.split(ws.config.data.val_fraction, ws.config.seed)
    if validation is None:
        print("nothing is held out: no validation, the last weights are kept")
    normaliser = from_dict(Normaliser, read_json(ws.run.path / "data/normaliser.json"))
    return train, validation, normaliser


def _fit(
    ws: Workspace, name: str, train: Callable[..., Fit], *parts: Any
) -> Generator[Report, None, Fit]:
    """Train what resumes, and logs, under `name`, a stage or `stage/part`; returns the fit."""
    options = {"precision": ws.precision, "folder": ws.resume(*name.split("/"))}
    fit = train(*parts, seed=ws.config.seed, **options)
    yield from ws.follow(fit, name.replace("/", "_"))
    return fit


def make_level1_stage(ws: Workspace, folder: Path) -> Iterator[Report]:
    """Level 1 (with level 2 when `level2.train=joint`), then the position probe."""
    config = ws.config
    *split, normaliser = load_data(ws)
    torch.manual_seed(config.seed)
    both = None
    if is_joint(config):
        both = HJepa(config, normaliser, split[0].frame_shape[1:]).to(ws.device)
    model = _level1(ws, split[0], normaliser) if both is None else both.level1
    # Before the fit is built: building it puts back the weights of an interrupted training.
    if config.level1.pretrain_mask:
        windows = _windows(split, config.level1)
        yield from _fit(ws, "l1/pretrain", pretrain_level1, model, *windows)
    local = config.level1.predictor == "local"
    if both is None:
        kind, windows = train_places if local else train_level1, _windows(split, config.level1)
        fit = yield from _fit(ws, "l1", kind, model, *windows)
    else:
        long = Windows(split[0], config.level2.macro_steps * config.level2.step_skip + 1)
        fit = yield from _fit(ws, "l1", train_joint, both, long, config)
    save_part(folder, model, "last")
    fit.load_best()
    if local:
        centre_places(model, Windows(split[0], 1), config.seed)
    stores = stores_for(ws, model, *split)
    if config.level1.refine_updates:  # the predictors alone, on latents that no longer change
        refine = train_local if local else refine_predictors
        fit = yield from _fit(ws, "l1/refine", refine, model, *stores)
        fit.load_best()
    if model.mover is not None:
        for part, name in ((find_mover, "mover"), (train_foresight, "foresight")):
            yield from _fit(ws, f"l1/{name}", part, model, stores[0])
    save_part(folder, model)
    if both is not None:
        save_part(folder, both.level2, "joint_level2")
    model.eval().requires_grad_(False)
    probe, quality = train_probe(model, *stores, seed=config.seed)
    save_part(folder, probe)
    train, held_out = stores
    source = {"measured_on": "held-out" if held_out else "training"}
    errors = probe_errors(model, probe, held_out or train)
    write_json(folder / "quality.json", quality | errors | source)


def _level1(ws: Workspace, train: Trajectories, normaliser: Normaliser) -> Jepa:
    config = ws.config.level1
    if config.encoder == "place":  # two numbers for each frame of an observation
        config = dataclasses.replace(config, latent_dim=2 * train.world.stacked)
    return Jepa(config, normaliser, train.frame_shape[1:]).to(ws.device)


def _windows(split: Iterable[Trajectories | None], config: Level1Config) -> list[Windows | None]:
    return [part and Windows(part, config.window) for part in split]


def stores_for(
    ws: Workspace, model: Jepa, train: Trajectories, validation: Trajectories | None
) -> tuple[LatentStore, LatentStore | None]:
    """Frozen latents of training and validation trajectories."""
    limit = ws.config.distance.trajectories
    return (
        LatentStore(model, train, limit, ws.precision),
        validation and LatentStore(model, validation, max(1, limit // 10), ws.precision),
    )


def make_distance_stage(ws: Workspace, folder: Path) -> Iterator[Report]:
    """The temporal-distance head, stored beside level 1."""
    config, model = ws.config, load_part(ws.run.path / "l1", "level1").to(ws.device)
    train, validation, _ = load_data(ws)
    torch.manual_seed(config.seed)
    head = Distance(config.distance, model.latent_dim).to(ws.device)
    stores = stores_for(ws, model, train, validation)
    yield from _fit(ws, "distance", train_distance, head, *stores)
    save_part(folder, head)


def make_macro_stage(
    ws: Workspace, folder: Path, name: str, section: Level2Config
) -> Iterator[Report]:
    """An RSSM on frozen latents (or the jointly trained weights), its box and its reach."""
    parts = load_trained(ws, FLAT)
    level1, head = parts.level1, parts.distance
    train, validation, _ = load_data(ws)
    torch.manual_seed(ws.config.seed)
    stores = stores_for(ws, level1, train, validation)
    if section.train == "joint":
        model = load_part(ws.run.path / "l1", "level2", "joint_level2").to(ws.device)
    else:
        image = level1.image if level1.map else None
        model = Level2(section, level1.latent_dim, level1.action_dim, image).to(ws.device)
        fit = yield from _fit(ws, name, train_level2, model, level1, *stores)
        fit.load_best()
    model.eval().requires_grad_(False)
    geometries = [LatentGeometry(), head]
    reach = {g.name: typical_cost(g, stores[0], section.step_skip) for g in geometries}
    box = macro_box(model, level1, stores[0])
    TrainedMacro(model, reach, box, fingerprint(level1)).save(folder)


def make_policies_stage(ws: Workspace, folder: Path) -> Iterator[Report]:
    """The policy without a world model."""
    train, validation, normaliser = load_data(ws)
    torch.manual_seed(ws.config.seed)
    model = GoalPolicy(ws.config.policies, normaliser, train.frame_shape[1:]).to(ws.device)
    fit = yield from _fit(ws, "policies", train_policy, model, train, validation)
    fit.load_best()
    save_part(folder, model)


def load_trained(ws: Workspace, names: Sequence[str] = ()) -> Agent:
    """The agent of the stages `names` (default: all that is trained), obtained where missing."""
    names = names or [stage.name for stage in wanted_stages(ws.config)]
    for name in reversed(names):  # the last one brings the set that it was trained with
        ws.obtain(core_stages(ws.config)[name])
    return load_run(ws.run, names, ws.precision, ws.device)


def load_run(run: Run, names: Sequence[str] = (), precision: str = "", device: str = "") -> Agent:
    """The agent of a run's stored stages `names` (default: all that it has)."""
    names = names or [name for name in ("l1", "distance", "l2", "l3") if run.done(name)]
    above = [run.path / name if name in names else None for name in ("l2", "l3")]
    config = run.config
    cap, world = played_cap(config, config.planning.action_cap), world_of(config)
    planning = dataclasses.replace(config.planning, action_cap=cap)
    where = (precision or run.precision, device or run.device)
    ball = not unplayed(config) if world is None else world.action_ball
    agent = load_agent(run.path / "l1", above[0], planning, config.seed, *where, above[1], ball)
    if unplayed(config):
        agent.planning = recorded_planning(planning, agent.level1.normaliser)
    elif (seen := agent.level1.frame) != (drawn := (world or TwoRooms).observed()):
        now = f"{config.data.played} has {drawn} now"
        raise RunError(f"run {run.name!r} was trained on frames {seen}, {now}")
    return agent


def train_run(open_run: Callable[[], Run], say: Say = print) -> None:
    """Train whatever the run still lacks; under torchrun, level 1 on all its processes.

        torchrun --nproc-per-node 4 -m hjepa_lib train --profile full --name big

    All must see the run folder; process 0 alone writes and trains the rest.
    """
    machine.set_up()
    distributed.start()
    try:
        run = Run.at(Path(distributed.from_first(lambda: str(open_run().path))))
        ws = Workspace("train", run)
        check_processes(ws.config)
        first = distributed.rank() == 0
        if first:
            say(f"{ws!r}, {distributed.count()} processes")
        distributed.from_first(lambda: make_data(ws).count)  # the others wait for the data
        level1 = core_stages(ws.config)["l1"]
        if not distributed.from_first(lambda: (ws.found if level1.load else ws.done)(level1)):
            if first:
                exhaust(ws.make(level1), "l1", say)
            else:
                _join_level1(ws)
    finally:
        distributed.stop()
    if not first:
        # An interpreter that shuts down under the group's threads can abort: a failure to torchrun.
        os._exit(0)
    for stage in wanted_stages(ws.config):
        exhaust(ws.make(stage), stage.name, say)
    say(f"trained; go on with: python -m hjepa_lib run --name {run.name} --resume")


def check_processes(config: Config) -> None:
    """ConfigError when several processes cannot share the work: joint training draws noise."""
    alone = is_joint(config) or config.level1.predictor == "local"
    if alone and distributed.count() > 1:
        what = "level2.train=joint or level1.predictor=local"
        raise ConfigError(f"{what} runs in one process: start it without torchrun")


def _join_level1(ws: Workspace) -> None:
    """What the other processes of a torchrun do meanwhile: the same updates, nothing written."""
    config = ws.config
    *split, normaliser = load_data(ws)
    torch.manual_seed(config.seed)
    model = _level1(ws, split[0], normaliser)  # its weights become those of process 0 in the fit
    options = {"precision": ws.precision, "folder": ws.run.path / "resume/l1"}
    for _ in train_level1(model, *_windows(split, config.level1), seed=config.seed, **options):
        pass


def exhaust(reports: Iterator[Report], name: str, say: Say = print) -> None:
    """Iterate a training to its end, with about ten printed lines on the way."""
    start = time.perf_counter()
    for report in reports:
        if report.update % max(1, report.updates // 10) == 0:
            say(f"{name} {report.update}/{report.updates}: loss {report.loss:.4f}, {since(start)}")
