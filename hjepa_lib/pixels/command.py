"""What `python -m hjepa_lib vjepa2 train | evaluate` does, on training seed 0 of a run.

The best checkpoint of each stage is also copied to `trained_models/` in the outputs folder, which
is where stage 2 looks for stage 1 by default.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hjepa_lib.config import ConfigError
from hjepa_lib.files import FileError
from hjepa_lib.pixels import grades, two_stages
from hjepa_lib.pixels.figures import world_model_predictions
from hjepa_lib.pixels.registry import FILES, about_model
from hjepa_lib.pixels.stages import load_model, stage_of, train
from hjepa_lib.runs import machine
from hjepa_lib.runs.places import outputs_root
from hjepa_lib.runs.run import Run
from hjepa_lib.runs.stages import exhaust
from hjepa_lib.runs.workspace import Workspace

SEED = 0
Say = Callable[..., None]


def default_checkpoint() -> Path:
    """`trained_models/best_stage1_model.safetensors` in the outputs folder."""
    return outputs_root() / "trained_models" / f"{FILES['stage1']}.safetensors"


def checkpoints(
    stage: int | None, first: Path | None, second: Path | None, run: Run | None
) -> dict[str, str]:
    """The settings that say where stage 2 starts, checked; `run` is the one to be continued.

    Stage 1 comes from `first`, by default from the run itself or from `default_checkpoint`; with
    `second` stage 2 goes on where that checkpoint ended.
    """
    if stage != 2:
        if first or second:
            raise ConfigError("a checkpoint to start from is for stage 2: add --stage 2")
        return {}
    if first and second:
        raise ConfigError("stage 2 goes on from its own checkpoint, or starts from stage 1's")
    if second is not None:
        if not second.is_file():
            raise FileError(f"stage 2 cannot go on from {second}: it does not exist")
        return {"pixels.vjepa2.stage2.checkpoint": str(second.resolve())}
    if first is None and run is not None and run.done(two_stages.STAGES[1].format(SEED)):
        return {}
    path = first or default_checkpoint()
    if not path.is_file():
        raise FileError(
            f"stage 2 needs stage 1's checkpoint, and {path} does not exist: run "
            "`python -m hjepa_lib vjepa2 train --stage 1` first, or name it by --stage1-checkpoint"
        )
    about_model(path, "stage1")
    return {"pixels.vjepa2.stage1.checkpoint": str(path.resolve())}


def train_model(run: Run, stage: int | None = None, say: Say = print) -> int:
    """Train stage 1, stage 2, or with None both and the heads and decoder built on them."""
    machine.set_up()
    ws = Workspace("vjepa2", run)
    say(f"{ws!r}")
    numbers = (1, 2) if stage is None else (stage,)
    for number in numbers:
        _train(ws, f"stage {number}", two_stages.STAGES[number].format(SEED), say)
        _export(ws, number, say)
    if stage is None:
        _train(ws, "reward heads", f"heads_vjepa2_s{SEED}", say)
        _train(ws, "state decoder", f"decoder_vjepa2_s{SEED}", say)
    for number in numbers:
        _print(ws, number, two_stages.stored_evaluation(ws, number, SEED), say)
    return 0


def evaluate(
    run: Run, stage: int | None = None, device: str | None = None, say: Say = print
) -> int:
    """Measure the stored weights anew, on `device`, and print them; stage 2 also draws a roll-out.

    Without a device on the one that the run was made with.
    """
    machine.set_up()
    ws = Workspace("vjepa2", run, device=device)
    say(f"{ws!r}")
    for number in (1, 2) if stage is None else (stage,):
        _print(ws, number, two_stages.evaluate(ws, number, SEED), say)
    if stage != 1:
        model = load_model(ws, "vjepa2", SEED)
        _, windows = two_stages.latent_windows(ws, model)
        steps = min(two_stages.ROLLOUT, ws.config.pixels.data.sequence)
        shown = two_stages.example(model.world, windows, steps)
        figure = world_model_predictions(*(part.numpy() for part in shown))
        ws.figure(figure, "world_model_predictions", "One imagined future of the V-JEPA 2 model.")
        say(f"figure: {run.path / 'figures/world_model_predictions.png'}")
    return 0


def _train(ws: Workspace, name: str, stage: str, say: Say) -> None:
    if ws.done(stage_of(ws, stage)):
        say(f"{name}: done before")
    exhaust(train(ws, stage), name, say)


def _export(ws: Workspace, stage: int, say: Say) -> None:
    """Copy the checkpoint (weights, description, state to resume from) to trained_models."""
    target = default_checkpoint().parent
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(ws.run.stage_folder(two_stages.STAGES[stage].format(SEED)).iterdir()):
        if any(name in path.name for name in (FILES[two_stages.NAMES[stage]], two_stages.FINAL)):
            shutil.copyfile(path, target / path.name)
    say(f"checkpoint: {target / FILES[two_stages.NAMES[stage]]}.safetensors")


def _print(ws: Workspace, stage: int, result: dict[str, Any], say: Say) -> None:
    say(f"stage {stage}: std {result['std']:.4g}, effective rank {result['effective_rank']:.1f}")
    for quantity, value, word in grades.graded(stage, result):
        say(f"  {quantity:<24} {value:9.4f}  {word}")
    if stage == 1:
        for ratio, value in result["masked_l1"].items():
            say(f"  L1 with mask {ratio:<11} {value:9.4f}")
    else:
        say(f"  {'mean L1':<24} {result['mean_l1']:9.4f}  copy-last {result['copy_last_l1']:.4f}")
        steps = zip(*result["per_step"].values(), strict=True)
        for step, (own, copied) in enumerate(steps, start=1):
            say(f"  after {step} imagined steps   {own:9.4f}  copy-last {copied:.4f}")
    lines = two_stages.criteria(ws, stage, SEED, result)
    for line in lines:
        word = {True: "pass", False: "FAIL", None: "not checked"}[line.passed]
        say(f"  {word:<12}{line.name}: {line.value} (bar {line.bar})")
    say(f"  stage {stage} {'passed' if grades.passed(lines) else 'FAILED'}")
