"""The stages of a run up to the trained agent: data, level 1, distance head, level 2, level 3.

A training is a generator of reports: a notebook iterates over it and draws, the command line
exhausts it, and both run the same code. A finished stage yields nothing.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from hjepa_lib.config import Config, ConfigError, Level2Config
from hjepa_lib.data.normaliser import Normaliser
from hjepa_lib.data.published import acquire
from hjepa_lib.data.trajectories import Trajectories
from hjepa_lib.data.windows import Windows
from hjepa_lib.evaluation import protocol_cap
from hjepa_lib.evaluation.openloop import probe_errors
from hjepa_lib.files import read_json, write_json
from hjepa_lib.models.checkpoint import (
    fingerprint,
    load_level1,
    load_level2,
    save_distance,
    save_level1,
    save_level2,
    save_probe,
)
from hjepa_lib.models.distance import Distance, LatentGeometry
from hjepa_lib.models.level1 import Jepa
from hjepa_lib.models.level2 import HJepa, Level2
from hjepa_lib.planning.agent import Agent, load_agent
from hjepa_lib.runs import machine
from hjepa_lib.runs.keys import core_stages, is_joint, wanted_stages
from hjepa_lib.runs.notebooks import describe
from hjepa_lib.runs.run import Run
from hjepa_lib.runs.workspace import Workspace
from hjepa_lib.training import distributed
from hjepa_lib.training.distance import train_distance
from hjepa_lib.training.latents import LatentStore
from hjepa_lib.training.level1 import pretrain_level1, refine_predictors, train_level1
from hjepa_lib.training.level2 import macro_box, train_joint, train_level2, typical_cost
from hjepa_lib.training.loop import Fit, Report
from hjepa_lib.training.probes import train_probe

NORMALISER = "normaliser.json"
LINES = 10  # progress lines per training on the command line
Say = Callable[..., None]


def train(ws: Workspace, name: str) -> Iterator[Report]:
    """The training `name` in this run; nothing when it is done, or these settings disable it."""
    for stage in wanted_stages(ws.config):
        if stage.name == name:
            yield from ws.make(stage)


# --- data -------------------------------------------------------------------------------------
def make_data_stage(ws: Workspace, folder: Path) -> None:
    config = ws.config
    data = acquire(config.data, config.seed)
    data.save(folder)
    train, _ = data.split(config.data.val_fraction, config.seed)
    write_json(folder / NORMALISER, Normaliser.fit(train, config.seed).to_dict())
    if "fallback" in data.meta:
        ws.run.note("data_fallback", data.meta["fallback"])


def make_data(ws: Workspace) -> Trajectories:
    """The trajectories of this run, generated or loaded where it has none."""
    return Trajectories.load(ws.obtain(core_stages(ws.config)["data"]))


def load_data(ws: Workspace) -> tuple[Trajectories, Trajectories | None, Normaliser]:
    """(train, validation, normaliser), made when this run has none; None: nothing is held out."""
    data = make_data(ws)
    train, validation = data.split(ws.config.data.val_fraction, ws.config.seed)
    if validation is None:
        print("nothing is held out: no validation, the last weights are kept")
    normaliser = Normaliser.from_dict(read_json(ws.run.path / "data" / NORMALISER))
    return train, validation, normaliser


# --- training ---------------------------------------------------------------------------------
def make_level1_stage(ws: Workspace, folder: Path) -> Iterator[Report]:
    """Level 1 (with level 2 when `level2.train=joint`), then the position probe."""
    config = ws.config
    train, validation, normaliser = load_data(ws)
    resume, joint = ws.resume("l1"), is_joint(config)
    torch.manual_seed(config.seed)
    if joint:
        both = HJepa(config, normaliser, train.world.frame_shape[1:]).to(ws.device)
        model, length = both.level1, config.level2.macro_steps * config.level2.step_skip + 1
    else:
        model = Jepa(config.level1, normaliser, train.world.frame_shape[1:]).to(ws.device)
    # Before the fit is built: building it puts back the weights of an interrupted training.
    yield from _pretrain(ws, model, train, validation)
    if joint:
        fit = train_joint(
            both, Windows(train, length), config, precision=ws.precision, folder=resume
        )
    else:
        fit = _level1_fit(ws, model, train, validation, resume)
    yield from ws.follow(fit, "l1")
    save_level1(folder, model, "last")
    fit.load_best()
    stores = stores_for(ws, model, train, validation)
    yield from _refine(ws, model, *stores)
    save_level1(folder, model)
    if joint:
        save_level2(folder, both.level2, {}, None, "joint_level2")
    model.eval().requires_grad_(False)
    probe, quality = train_probe(model, *stores, seed=config.seed)
    save_probe(folder, probe)
    held_out = stores[1] is not None
    errors = probe_errors(model, probe, stores[1] if held_out else stores[0])
    source = {"measured_on": "held-out" if held_out else "training"}
    write_json(folder / "quality.json", quality | errors | source)


def _level1_fit(
    ws: Workspace, model: Jepa, train: Trajectories, validation: Trajectories | None, resume: Path
) -> Fit:
    config = ws.config
    windows = [part and Windows(part, config.level1.window) for part in (train, validation)]
    return train_level1(
        model, *windows, config.level1, seed=config.seed, precision=ws.precision, folder=resume
    )


def _pretrain(
    ws: Workspace, model: Jepa, train: Trajectories, validation: Trajectories | None
) -> Iterator[Report]:
    """Masked pre-training of the encoder where `level1.pretrain_mask` asks for it."""
    config = ws.config
    if config.level1.pretrain_mask:
        windows = [part and Windows(part, config.level1.window) for part in (train, validation)]
        fit = pretrain_level1(
            model, *windows, config.level1, seed=config.seed, precision=ws.precision,
            folder=ws.resume("l1/pretrain"),
        )  # fmt: skip
        yield from ws.follow(fit, "l1_pretrain")
        if model.target_encoder is not None:  # the slow copy of level 1 starts from there as well
            model.target_encoder.load_state_dict(model.encoder.state_dict())


def _refine(
    ws: Workspace, model: Jepa, store: LatentStore, validation: LatentStore | None
) -> Iterator[Report]:
    """The predictors alone, on latents that no longer change, if `level1.refine_updates` asks."""
    if ws.config.level1.refine_updates:
        fit = refine_predictors(
            model, store, validation, ws.config.level1, seed=ws.config.seed,
            precision=ws.precision, folder=ws.resume("l1/refine"),
        )  # fmt: skip
        yield from ws.follow(fit, "l1_refine")
        fit.load_best()


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
    model = load_level1(ws.run.path / "l1")
    model.to(ws.device)
    train, validation, _ = load_data(ws)
    torch.manual_seed(ws.config.seed)
    head = Distance(ws.config.distance, model.latent_dim).to(ws.device)
    fit = train_distance(
        head, *stores_for(ws, model, train, validation), ws.config.distance,
        seed=ws.config.seed, precision=ws.precision, folder=ws.resume("distance"),
    )  # fmt: skip
    yield from ws.follow(fit, "distance")
    save_distance(folder, head)


def make_macro_stage(
    ws: Workspace, folder: Path, name: str, section: Level2Config
) -> Iterator[Report]:
    """An RSSM on frozen latents (or the jointly trained weights), its box and its reach."""
    parts = load_agent_parts(ws)
    level1, head = parts.level1, parts.distance
    train, validation, _ = load_data(ws)
    torch.manual_seed(ws.config.seed)
    stores = stores_for(ws, level1, train, validation)
    if section.train == "joint":
        model = load_level2(ws.run.path / "l1", "joint_level2").model.to(ws.device)
    else:
        model = Level2(section, level1.latent_dim, level1.action_dim).to(ws.device)
        fit = train_level2(
            model, level1, *stores, section, seed=ws.config.seed, precision=ws.precision,
            folder=ws.resume(name),
        )  # fmt: skip
        yield from ws.follow(fit, name)
        fit.load_best()
    model.eval().requires_grad_(False)
    geometries = [LatentGeometry(), head]
    reach = {g.name: typical_cost(g, stores[0], section.step_skip) for g in geometries}
    box = macro_box(model, level1, stores[0])
    save_level2(folder, model, reach, box, level1=fingerprint(level1))


# --- trained agents ---------------------------------------------------------------------------
def load_agent_parts(ws: Workspace) -> Agent:
    """The agent with level 1 and the distance head alone."""
    return agent_of(ws, ("l1", "distance"))


def load_trained(ws: Workspace) -> Agent:
    """The whole agent of this run, each stage obtained where it is missing."""
    return agent_of(ws, tuple(stage.name for stage in wanted_stages(ws.config)))


def agent_of(ws: Workspace, names: tuple[str, ...]) -> Agent:
    """The agent of the stages `names`, each obtained where this run lacks it."""
    stages = core_stages(ws.config)
    for name in reversed(names):  # the last one brings the set that it was trained with
        ws.obtain(stages[name])
    return load_run(ws.run, names, ws.precision, ws.device)


def load_run(
    run: Run, names: tuple[str, ...] | None = None, precision: str = "", device: str = ""
) -> Agent:
    """The agent of a run's stored stages `names` (default: all that it has)."""
    stored = tuple(name for name in ("l1", "distance", "l2", "l3") if run.done(name))
    names = stored if names is None else names
    folders = [run.path / name if name in names else None for name in ("l2", "l3")]
    config = run.config
    cap = protocol_cap(config.evaluation.protocol, config.planning.action_cap)
    planning = dataclasses.replace(config.planning, action_cap=cap)
    return load_agent(
        run.path / "l1", folders[0], planning, config.seed, precision or run.precision,
        device or run.device, folders[1],
    )  # fmt: skip


# --- the command line -------------------------------------------------------------------------
def train_run(open_run: Callable[[], Run], say: Say = print) -> None:
    """Train whatever the run still lacks; under torchrun, level 1 on all its processes.

        torchrun --nproc-per-node 4 -m hjepa_lib train --profile full --name big

    The heads read stored latents and take a small part of the time: process 0 trains them alone,
    the others have ended. Only process 0 writes; all must see the run folder, and `open_run` is
    called in process 0 only. ConfigError when several processes cannot share the work.
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
        if not distributed.from_first(lambda: ws.done(level1)):
            if first:
                exhaust(ws.make(level1), "l1", say)
            else:
                _join_level1(ws)
    finally:
        distributed.stop()
    if not first:
        # Threads of the group may still be ending; an interpreter that shuts down under them can
        # abort, and torchrun would call that a failure.
        os._exit(0)
    for stage in wanted_stages(ws.config):
        exhaust(ws.make(stage), stage.name, say)
    say(f"trained; go on with: python -m hjepa_lib run --name {run.name} --resume")


def check_processes(config: Config) -> None:
    """ConfigError when several processes cannot share the work: joint training draws noise."""
    if distributed.count() > 1 and is_joint(config):
        raise ConfigError("level2.train=joint runs in one process: start it without torchrun")


def _join_level1(ws: Workspace) -> None:
    """What the other processes of a torchrun do meanwhile: the same updates, nothing written."""
    train, validation, normaliser = load_data(ws)
    torch.manual_seed(ws.config.seed)
    # Its weights become those of process 0 in the fit.
    model = Jepa(ws.config.level1, normaliser, train.world.frame_shape[1:]).to(ws.device)
    for _ in _level1_fit(ws, model, train, validation, ws.run.path / "resume/l1"):
        pass


def exhaust(reports: Iterator[Report], name: str, say: Say = print) -> None:
    """Iterate a training to its end, a few printed lines on the way."""
    start = time.perf_counter()
    for report in reports:
        if report.update % max(1, report.updates // LINES) == 0:
            spent = describe((time.perf_counter() - start) / 60)
            say(f"{name} {report.update}/{report.updates}: loss {report.loss:.4f}, {spent}")
