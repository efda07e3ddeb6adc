"""What `python -m hjepa_lib vjepa2 train | evaluate` does, on the stages of vjepa2stages.py.

The command works on training seed 0 of a run. After each stage its best checkpoint is also copied
to `trained_models/` in the outputs folder, which is where stage 2 looks for stage 1 by default.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hjepa_lib.config.fields import ConfigError
from hjepa_lib.files import FileError
from hjepa_lib.pixels import grades as scores
from hjepa_lib.pixels import two_stages as stages
from hjepa_lib.pixels import vjepa2results as results
from hjepa_lib.pixels.figures_vjepa2 import world_model_predictions
from hjepa_lib.pixels.registry import FILES, about_model
from hjepa_lib.runs import machine
from hjepa_lib.runs.places import outputs_root
from hjepa_lib.runs.run import Run
from hjepa_lib.runs.workspace import Workspace
from hjepa_lib.training.loop import Report

SEED = 0
_LINES = 10  # progress lines per training
Say = Callable[..., None]


def default_checkpoint() -> Path:
    """`trained_models/best_stage1_model.safetensors` in the outputs folder."""
    return outputs_root() / "trained_models" / f"{FILES['stage1']}.safetensors"


def train(
    open_run: Callable[[], Run],
    known: Run | None,
    stage: int | None = None,
    stage1_checkpoint: Path | None = None,
    stage2_checkpoint: Path | None = None,
    say: Say = print,
) -> int:
    """Train stage 1, stage 2, or with None both and what is built on them.

    `open_run` makes or continues the run, once it is clear that the checkpoints are there; `known`
    is the run if it exists already. Raises ConfigError and FileError.
    """
    own = known is not None and known.done(stages.stage_name(1, SEED))
    first = _stage1_source(stage, stage1_checkpoint, stage2_checkpoint, own)
    machine.set_up()
    ws = Workspace("vjepa2", open_run())
    say(f"{ws!r}")
    if stage != 2:
        _train("stage 1", stages.train_stage1(ws, SEED), say)
        _export(ws, 1, say)
    if stage != 1:
        if first is not None:
            stages.adopt_stage1(ws, SEED, first)
        _train("stage 2", stages.train_stage2(ws, SEED, stage2_checkpoint), say)
        _export(ws, 2, say)
    if stage is None:
        from hjepa_lib.pixels import headstages
        from hjepa_lib.pixels import stages as pixelstages

        _train("reward heads", headstages.train_heads_stage(ws, "vjepa2", SEED), say)
        _train("state decoder", pixelstages.train_decoder_stage(ws, "vjepa2", SEED), say)
    for number in (1, 2) if stage is None else (stage,):
        _print(number, *_judged(ws, number, results.stored(ws, number, SEED)), say)
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
        _print(number, *_judged(ws, number, results.measure(ws, number, SEED)), say)
    if stage != 1:
        model = stages.load_vjepa2(ws, SEED)
        _, validation = results.latent_windows(ws, model)
        steps = min(scores.ROLLOUT, ws.config.pixels.data.sequence)
        shown = scores.example(model.world, validation, steps)
        figure = world_model_predictions(*(part.numpy() for part in shown))
        ws.figure(figure, "world_model_predictions", "One imagined future of the V-JEPA 2 model.")
        say(f"figure: {run.path / 'figures/world_model_predictions.png'}")
    return 0


def _stage1_source(
    stage: int | None, first: Path | None, second: Path | None, own: bool
) -> Path | None:
    """The checkpoint that stage 1 comes from, None when it is trained or there; checked."""
    if stage != 2:
        if first or second:
            raise ConfigError("a checkpoint to start from is for stage 2: add --stage 2")
        return None
    if first and second:
        raise ConfigError("stage 2 goes on from its own checkpoint, or starts from stage 1's")
    if second is not None and not second.is_file():
        raise FileError(f"stage 2 cannot go on from {second}: it does not exist")
    if second is not None or (own and first is None):
        return None
    path = first or default_checkpoint()
    if not path.is_file():
        raise FileError(
            f"stage 2 needs stage 1's checkpoint, and {path} does not exist: run "
            "`python -m hjepa_lib vjepa2 train --stage 1` first, or name it by --stage1-checkpoint"
        )
    about_model(path, "stage1")
    return path


def _train(name: str, reports: Iterator[Report], say: Say) -> None:
    trained = False
    for report in reports:
        trained = True
        if report.update % max(1, report.updates // _LINES) == 0:
            say(f"{name}: update {report.update} of {report.updates}, loss {report.loss:.4f}")
    if not trained:
        say(f"{name}: done before")


def _export(ws: Workspace, stage: int, say: Say) -> None:
    """Copy the checkpoint (weights, description, state to resume from) to trained_models."""
    source = stages.checkpoint(ws, stage, SEED)
    target = default_checkpoint().parent
    target.mkdir(parents=True, exist_ok=True)
    final = source.with_name(f"{stages.FINAL}.safetensors")
    for path in (source, *((final,) if stage == 2 else ())):
        for file in (path, path.with_suffix(".json"), stages.resume_path(path)):
            if file.is_file():
                shutil.copyfile(file, target / file.name)
        say(f"checkpoint: {target / path.name}")


def _judged(
    ws: Workspace, stage: int, result: dict[str, Any]
) -> tuple[dict[str, Any], list[scores.Criterion]]:
    return result, results.criteria(ws, stage, SEED, result)


def _print(stage: int, result: dict[str, Any], criteria: list[scores.Criterion], say: Say) -> None:
    say(f"stage {stage}: std {result['std']:.4g}, effective rank {result['effective_rank']:.1f}")
    for quantity, value, word in scores.graded(stage, result):
        say(f"  {quantity:<24} {value:9.4f}  {word}")
    if stage == 1:
        for ratio, value in result["masked_l1"].items():
            say(f"  L1 with mask {ratio:<11} {value:9.4f}")
    else:
        say(f"  {'mean L1':<24} {result['mean_l1']:9.4f}  copy-last {result['copy_last_l1']:.4f}")
        steps = zip(*result["per_step"].values(), strict=True)
        for step, (own, copied) in enumerate(steps, start=1):
            say(f"  after {step} imagined steps   {own:9.4f}  copy-last {copied:.4f}")
    for line in criteria:
        word = {True: "pass", False: "FAIL", None: "not checked"}[line.passed]
        say(f"  {word:<12}{line.name}: {line.value} (bar {line.bar})")
    say(f"  stage {stage} {'passed' if scores.passed(criteria) else 'FAILED'}")
