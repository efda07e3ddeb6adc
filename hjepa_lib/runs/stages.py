"""The stages of a run up to the trained agent: data, level 1, distance head, level 2.

Training stages are generators of reports: a notebook iterates over them and draws, the command line
just exhausts them, and both run the same code. A finished stage yields nothing. Whatever a stage
needs and this run lacks is taken from the latest agreeing run, then the pretrained one, and is
otherwise trained here with the smoke budget; the workspace says which.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from hjepa_lib.config import Level2Config, profile
from hjepa_lib.data.normaliser import Normaliser
from hjepa_lib.data.published import acquire
from hjepa_lib.data.trajectories import Trajectories
from hjepa_lib.data.windows import Windows
from hjepa_lib.evaluation.openloop import probe_errors
from hjepa_lib.files import read_json, write_json
from hjepa_lib.models.checkpoint import (
    load_level1,
    load_weights,
    save_distance,
    save_level1,
    save_level2,
    save_probe,
    save_weights,
)
from hjepa_lib.models.distance import Distance
from hjepa_lib.models.geometry import DistanceGeometry, LatentGeometry
from hjepa_lib.models.joint import HJepa, Level2
from hjepa_lib.models.level1 import Jepa
from hjepa_lib.planning.agent import Agent, load_agent
from hjepa_lib.runs.workspace import Workspace
from hjepa_lib.training.distance import train_distance
from hjepa_lib.training.latents import LatentStore
from hjepa_lib.training.level1 import train_level1
from hjepa_lib.training.level2 import macro_box, train_joint, train_level2, typical_cost
from hjepa_lib.training.loop import Fit, Report
from hjepa_lib.training.masked import pretrain_level1
from hjepa_lib.training.probes import train_probe
from hjepa_lib.training.refine import refine_predictors

LOG_EVERY = 10  # updates between lines of metrics.jsonl
NORMALISER = "normaliser.json"


# --- data -------------------------------------------------------------------------------------
def make_data(ws: Workspace) -> Trajectories:
    """Generate or load the trajectories of this run (stage `data`)."""
    config = ws.config
    if not ws.run.done("data"):
        with ws.run.stage("data") as folder:
            data = acquire(config.data, config.seed, ws.run.path.parent / ".downloads")
            data.save(folder)
            train, _ = data.split(config.data.val_fraction, config.seed)
            write_json(folder / NORMALISER, Normaliser.fit(train, config.seed).to_dict())
        if "fallback" in data.meta:
            ws.run.note("data_fallback", data.meta["fallback"])
    return Trajectories.load(ws.run.path / "data")


def load_data(ws: Workspace) -> tuple[Trajectories, Trajectories, Normaliser]:
    """(train, validation, normaliser); makes them when this run has none."""
    data = make_data(ws)
    train, validation = data.split(ws.config.data.val_fraction, ws.config.seed)
    normaliser = Normaliser.from_dict(read_json(ws.run.path / "data" / NORMALISER))
    return train, validation, normaliser


# --- training ---------------------------------------------------------------------------------
def follow(ws: Workspace, stage: str, fit: Fit, every: int = LOG_EVERY) -> Iterator[Report]:
    """Iterate a fit and write its reports to metrics.jsonl, from the checkpoint on."""
    ws.run.rewind(stage, fit.update)
    for report in fit:
        if report.update % every == 0 or report.validation:
            row = {"stage": stage, "step": report.update, "loss": report.loss, "lr": report.lr}
            row |= {"grad_norm": report.grad_norm, **report.terms}
            row |= {f"validation_{key}": value for key, value in report.validation.items()}
            ws.run.log(row)
        yield report


def _resume_folder(ws: Workspace, stage: str) -> Path:
    """Optimiser state lives apart from the checkpoint and goes away with success."""
    return ws.run.folder(f"resume/{stage}")


def train_level1_stage(ws: Workspace) -> Iterator[Report]:
    """Stage `l1`: level 1 (with level 2 when `level2.train=joint`), then the position probe."""
    if ws.run.done("l1"):
        return
    config = ws.config
    train, validation, normaliser = load_data(ws)
    resume = _resume_folder(ws, "l1")
    torch.manual_seed(config.seed)  # before any weight or batch is drawn (EB5)
    joint = config.level2.train == "joint" and not config.level2.disable_l2
    with ws.run.stage("l1", needs=("data",)) as folder:
        if joint:
            both = HJepa(config, normaliser).to(ws.device)
            model, length = both.level1, config.level2.macro_steps * config.level2.step_skip + 1
        else:
            model = Jepa(config.level1, normaliser).to(ws.device)
        # Before the fit is built: building it puts back the weights of an interrupted training.
        yield from _pretrain(ws, model, train, validation)
        if joint:
            fit = train_joint(
                both, Windows(train, length), config, precision=ws.precision, folder=resume
            )
        else:
            fit = _level1_fit(ws, model, train, validation, resume)
        yield from follow(ws, "l1", fit)
        save_level1(folder, model, normaliser, "last")
        fit.load_best()
        stores = stores_for(ws, model, train, validation)
        yield from _refine(ws, model, *stores)
        save_level1(folder, model, normaliser)
        if joint:
            save_weights(folder / "joint_level2.safetensors", both.level2)
        model.eval().requires_grad_(False)
        probe, quality = train_probe(model, normaliser, *stores, seed=config.seed)
        save_probe(folder, probe)
        write_json(folder / "quality.json", quality | probe_errors(model, probe, stores[1]))
    shutil.rmtree(resume)
    for name in ("l1_pretrain", "l1_refine"):
        shutil.rmtree(ws.run.path / "resume" / name, ignore_errors=True)


def join_level1(ws: Workspace) -> None:
    """What the other processes of a torchrun do meanwhile: the same updates, nothing written."""
    train, validation, normaliser = load_data(ws)
    torch.manual_seed(ws.config.seed)
    model = Jepa(ws.config.level1, normaliser).to(ws.device)  # gets process 0's weights in the fit
    for _ in _level1_fit(ws, model, train, validation, ws.run.path / "resume/l1"):
        pass


def _level1_fit(
    ws: Workspace, model: Jepa, train: Trajectories, validation: Trajectories, resume: Path
) -> Fit:
    config = ws.config
    windows = [Windows(part, config.level1.window) for part in (train, validation)]
    return train_level1(
        model, *windows, config.level1, seed=config.seed, precision=ws.precision, folder=resume
    )


def _pretrain(
    ws: Workspace, model: Jepa, train: Trajectories, validation: Trajectories
) -> Iterator[Report]:
    """Masked pre-training of the encoder where `level1.pretrain_mask` asks for it."""
    config = ws.config
    if config.level1.pretrain_mask:
        windows = [Windows(part, config.level1.window) for part in (train, validation)]
        fit = pretrain_level1(
            model, *windows, config.level1, seed=config.seed, precision=ws.precision,
            folder=_resume_folder(ws, "l1_pretrain"),
        )  # fmt: skip
        yield from follow(ws, "l1_pretrain", fit)
        if model.target_encoder is not None:  # the slow copy of level 1 starts from there as well
            model.target_encoder.load_state_dict(model.encoder.state_dict())


def _refine(
    ws: Workspace, model: Jepa, store: LatentStore, validation: LatentStore
) -> Iterator[Report]:
    """The predictors alone, on latents that no longer change, if `level1.refine_updates` asks."""
    if ws.config.level1.refine_updates:
        fit = refine_predictors(
            model, store, validation, ws.config.level1, seed=ws.config.seed,
            precision=ws.precision, folder=_resume_folder(ws, "l1_refine"),
        )  # fmt: skip
        yield from follow(ws, "l1_refine", fit)
        fit.load_best()


def stores_for(
    ws: Workspace, model: Jepa, train: Trajectories, validation: Trajectories
) -> tuple[LatentStore, LatentStore]:
    """Frozen latents of training and validation trajectories."""
    limit = ws.config.distance.trajectories
    return (
        LatentStore(model, train, limit, ws.precision),
        LatentStore(model, validation, max(1, limit // 10), ws.precision),
    )


def train_distance_stage(ws: Workspace) -> Iterator[Report]:
    """Stage `distance`: the temporal-distance head, stored beside level 1."""
    if ws.run.done("distance"):
        return
    model, _ = load_level1(find(ws, "l1"))
    model.to(ws.device)
    train, validation, _ = load_data(ws)
    resume = _resume_folder(ws, "distance")
    torch.manual_seed(ws.config.seed)
    with ws.run.stage("distance", folder="l1", needs=own_stages(ws, "l1")) as folder:
        head = Distance(ws.config.distance, model.latent_dim).to(ws.device)
        fit = train_distance(
            head, *stores_for(ws, model, train, validation), ws.config.distance,
            seed=ws.config.seed, precision=ws.precision, folder=resume,
        )  # fmt: skip
        yield from follow(ws, "distance", fit)
        save_distance(folder, head, model.latent_dim)
    shutil.rmtree(resume)


def train_level2_stage(ws: Workspace) -> Iterator[Report]:
    """Stage `l2`: the RSSM on frozen latents (or the jointly trained weights), box and reach."""
    if not (ws.run.done("l2") or ws.config.level2.disable_l2):
        yield from _train_macro(ws, "l2", ws.config.level2)


def train_level3_stage(ws: Workspace) -> Iterator[Report]:
    """Stage `l3`: one more RSSM on the same latents, on a slower clock (`level3.enabled`)."""
    if ws.config.level3.enabled and not ws.run.done("l3"):
        yield from _train_macro(ws, "l3", ws.config.third)


def _train_macro(ws: Workspace, stage: str, section: Level2Config) -> Iterator[Report]:
    config = ws.config
    parts = load_agent_parts(ws)
    level1, head = parts.level1, parts.distance
    train, validation, _ = load_data(ws)
    resume = _resume_folder(ws, stage)
    torch.manual_seed(config.seed)
    with ws.run.stage(stage, needs=own_stages(ws, "l1", "distance")) as folder:
        stores = stores_for(ws, level1, train, validation)
        model = Level2(section, level1.latent_dim).to(ws.device)
        if section.train == "joint":
            load_weights(find(ws, "l1") / "joint_level2.safetensors", model)
        else:
            fit = train_level2(
                model, level1, *stores, section, seed=config.seed, precision=ws.precision,
                folder=resume,
            )  # fmt: skip
            yield from follow(ws, stage, fit)
            fit.load_best()
        model.eval().requires_grad_(False)
        geometries = [LatentGeometry(), DistanceGeometry(head)]
        reach = {g.name: typical_cost(g, stores[0], section.step_skip) for g in geometries}
        save_level2(folder, model, level1.latent_dim, reach, macro_box(model, level1, stores[0]))
    shutil.rmtree(resume)


def train_all(ws: Workspace) -> Iterator[Report]:
    """The training stages in turn: level 1, distance head, level 2, level 3 where enabled."""
    stages = (train_level1_stage, train_distance_stage, train_level2_stage, train_level3_stage)
    for train in stages:
        yield from train(ws)


def own_stages(ws: Workspace, *stages: str) -> tuple[str, ...]:
    """Those stages that this run made itself (others come from elsewhere)."""
    return tuple(stage for stage in stages if ws.run.done(stage))


# --- inputs -----------------------------------------------------------------------------------
def find(ws: Workspace, stage: str) -> Path:
    """Folder of a trained stage, wherever it comes from; trains a smoke one as a last resort."""
    trainers = {
        "l1": train_level1_stage,
        "distance": train_distance_stage,
        "l2": train_level2_stage,
        "l3": train_level3_stage,
    }

    def smoke() -> Path:
        for _ in trainers[stage](_with_smoke_budget(ws)):
            pass
        return ws.run.path / ("l1" if stage == "distance" else stage)

    found = ws.input(stage, smoke)
    ws.run.note(f"input_{stage}", found.origin)
    return found.folder


def _with_smoke_budget(ws: Workspace) -> Workspace:
    """The same workspace with the smoke profile's numbers of updates; model sizes stay."""
    smoke, config = profile("smoke"), ws.config
    short = {
        f"{part}.optim.updates": getattr(smoke, part).optim.updates
        for part in ("level1", "distance", "level2")
    }
    refining = min(config.level1.refine_updates, smoke.level1.optim.updates)
    short["level1.refine_updates"] = refining
    copy = Workspace.__new__(Workspace)
    copy.__dict__ = ws.__dict__ | {"config": config.override(short)}
    return copy


def load_agent_parts(ws: Workspace) -> Agent:
    """The agent with level 1 alone."""
    return _agent(ws, with_level2=False)


def load_trained(ws: Workspace) -> Agent:
    """The whole agent of this run."""
    return _agent(ws, with_level2=not ws.config.level2.disable_l2)


def _agent(ws: Workspace, with_level2: bool) -> Agent:
    l1 = find(ws, "l1")
    find(ws, "distance")
    l2 = find(ws, "l2") if with_level2 else None
    l3 = find(ws, "l3") if with_level2 and ws.config.level3.enabled else None
    return load_agent(l1, l2, ws.config.planning, ws.config.seed, ws.precision, ws.device, l3)
