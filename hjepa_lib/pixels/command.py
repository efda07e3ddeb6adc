"""What `python -m hjepa_lib vjepa2 train | evaluate` does, on training seed 0 of a run."""

import shutil
from pathlib import Path
from typing import Any

from hjepa_lib.config import ConfigError
from hjepa_lib.files import FileError
from hjepa_lib.pixels import two_stages
from hjepa_lib.pixels.figures import world_model_predictions
from hjepa_lib.pixels.models import FILES, about_model
from hjepa_lib.pixels.stages import load_model, name_of, stage_of, train
from hjepa_lib.runs import machine
from hjepa_lib.runs.places import outputs_root
from hjepa_lib.runs.run import Run
from hjepa_lib.runs.stages import exhaust
from hjepa_lib.runs.workspace import Workspace

STAGES = {stage: name_of(name, 0) for stage, name in two_stages.STAGES.items()}


def default_checkpoint() -> Path:
    """Where stage 2 looks for stage 1: `trained_models/` in the outputs folder."""
    return outputs_root() / "trained_models" / f"{FILES['stage1']}.safetensors"


def checkpoints(
    stage: int | None, first: Path | None, second: Path | None, run: Run | None
) -> dict[str, str]:
    """The settings that say where stage 2 starts: where `second` ended, or from stage 1 in `first`,
    in `run`, which is to be continued, or in `default_checkpoint`."""
    if stage != 2:
        if first or second:
            raise ConfigError("a checkpoint to start from is for stage 2: add --stage 2")
        return {}
    if first and second:
        raise ConfigError("stage 2 goes on from its own checkpoint, or starts from stage 1's")
    if not (first or second) and run is not None and run.done(STAGES[1]):
        return {}
    path, number = (second, 2) if second else (first or default_checkpoint(), 1)
    if not path.is_file():
        raise FileError(
            f"stage 2 needs a checkpoint, and {path} does not exist: run "
            "`python -m hjepa_lib vjepa2 train --stage 1` first, or name one by --stage1-checkpoint"
        )
    about_model(path, two_stages.NAMES[number])
    return {f"pixels.vjepa2.stage{number}.checkpoint": str(path.resolve())}


def train_model(run: Run, stage: int | None = None) -> int:
    """Train a stage, or with None both and the heads and decoder built on them."""
    ws, numbers = _open(run), (stage,) if stage else (1, 2)
    for number in numbers:
        _train(ws, f"stage {number}", STAGES[number])
        _export(ws, number)
    if stage is None:
        _train(ws, "reward heads", "heads_vjepa2_s0")
        _train(ws, "state decoder", "decoder_vjepa2_s0")
    for number in numbers:
        _print(ws, number, two_stages.stored_evaluation(ws, number, 0))
    return 0


def _train(ws: Workspace, title: str, name: str) -> None:
    if ws.done(stage_of(ws, name)):
        print(f"{title}: done before")
    exhaust(train(ws, name), title, print)


def evaluate(run: Run, stage: int | None = None, device: str | None = None) -> int:
    """Measure the stored weights anew, on a `device` or the run's; stage 2 draws a roll-out."""
    ws = _open(run, device)
    for number in (stage,) if stage else (1, 2):
        _print(ws, number, two_stages.evaluate(ws, number, 0))
    if stage != 1:
        model = load_model(ws, "vjepa2", 0)
        *_, windows = two_stages.latent_windows(ws, model)
        steps = min(two_stages.ROLLOUT, model.world.length)
        shown = two_stages.example(model.world, windows, steps)
        figure = world_model_predictions(*(part.numpy() for part in shown))
        ws.figure(figure, "world_model_predictions", "One imagined future of the V-JEPA 2 model.")
        print(f"figure: {run.path / 'figures/world_model_predictions.png'}")
    return 0


def _open(run: Run, device: str | None = None) -> Workspace:
    machine.set_up()
    ws = Workspace("vjepa2", run, device)
    print(repr(ws))
    return ws


def _export(ws: Workspace, stage: int) -> None:
    """Copy weights, description and state to resume from beside `default_checkpoint`."""
    target, best = default_checkpoint().parent, FILES[two_stages.NAMES[stage]]
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(ws.run.stage_folder(STAGES[stage]).iterdir()):
        if best in path.name or two_stages.FINAL in path.name:
            shutil.copyfile(path, target / path.name)
    print(f"checkpoint: {target / best}.safetensors")


def _print(ws: Workspace, stage: int, result: dict[str, Any]) -> None:
    spread = f"varying {result['varying']:.4g}, effective rank {result['effective_rank']:.1f}"
    print(f"stage {stage}: {spread}")
    found = two_stages.graded(stage, result)
    masked = result.get("masked_l1", {})
    found += [(f"L1 with mask {share}", value, "") for share, value in masked.items()]
    if stage == 2:
        steps = zip(*result["per_step"].values(), strict=True)
        pairs = {"mean L1": (result["mean_l1"], result["copy_last_l1"])}
        pairs |= {f"after {n} imagined steps": pair for n, pair in enumerate(steps, start=1)}
        found += [(name, own, f"copy-last {copy:.4f}") for name, (own, copy) in pairs.items()]
    for name, value, word in found:
        print(f"  {name:<24} {value:9.4f}  {word}")
    lines = two_stages.criteria(ws, stage, 0, result)
    print(*(f"  {line}" for line in lines), sep="\n")
    print(f"  stage {stage} {'passed' if two_stages.passed(lines) else 'FAILED'}")
