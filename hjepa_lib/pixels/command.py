"""What `python -m hjepa_lib vjepa2 train | evaluate` does, on training seed 0 of a run."""

from typing import Any

from hjepa_lib.pixels import two_stages
from hjepa_lib.pixels.models import FILES
from hjepa_lib.pixels.stages import name_of, stage_of, train
from hjepa_lib.runs import machine
from hjepa_lib.runs.run import Run
from hjepa_lib.runs.stages import exhaust
from hjepa_lib.runs.workspace import Workspace


def train_model(run: Run, stage: int | None = None) -> int:
    """Train a stage, or with None both and the heads and decoder built on them."""
    ws, numbers = _open(run), (stage,) if stage else (1, 2)
    for number in numbers:
        name = name_of(two_stages.STAGES[number], 0)
        _train(ws, f"stage {number}", name)
        best = FILES[two_stages.NAMES[number]]
        print(f"checkpoint: {run.stage_folder(name) / best}.safetensors")
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


def evaluate(run: Run, stage: int | None = None) -> int:
    """Measure the stored weights anew."""
    ws = _open(run)
    for number in (stage,) if stage else (1, 2):
        _print(ws, number, two_stages.evaluate(ws, number, 0))
    return 0


def _open(run: Run) -> Workspace:
    machine.set_up()
    ws = Workspace("vjepa2", run)
    print(repr(ws))
    return ws


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
