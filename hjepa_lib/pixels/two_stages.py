"""The two stages of the V-JEPA 2 style model: measured, judged as seed 002 does (VJ-13), and what
`python -m hjepa_lib vjepa2 train | evaluate` does with training seed 0 of a run.

Beside each error stands a guess's: of a constant token in stage 1, of the last latent in stage 2.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import l1_loss
from torch.utils.data import TensorDataset

from hjepa_lib.config import ConfigError
from hjepa_lib.files import read_json
from hjepa_lib.models.layers import draw_masks
from hjepa_lib.pixels import models, stages
from hjepa_lib.pixels.stages import make_transitions, name_of, stage_of, train
from hjepa_lib.pixels.training import mean_loss
from hjepa_lib.pixels.transitions import Transitions
from hjepa_lib.pixels.vjepa2 import MaskedPrediction, WorldModel, encode_states
from hjepa_lib.runs import machine
from hjepa_lib.runs.run import Run
from hjepa_lib.runs.stages import exhaust
from hjepa_lib.runs.workspace import Workspace
from hjepa_lib.training.probes import LEAST, collapse

STAGES = {1: "vjepa2_stage1", 2: "vjepa2"}
NAMES = {1: "stage1", 2: "vjepa2"}
"""What models.py calls the model of a stage."""
EVALUATION = "evaluation.json"
RATIOS = (0.25, 0.5, 0.75)
BATCHES, HELD_OUT, ROLLOUT = 5, 256, 8
STABLE, LEAST_EPOCHS = 1.1, 15
"""Most that the last validation loss may be over the lowest; epochs of stage 2."""


def stored_evaluation(ws: Workspace, stage: int, number: int) -> dict[str, Any]:
    """The evaluation that a stage left."""
    return read_json(_trained(ws, stage, number) / EVALUATION)


def measure(ws: Workspace, stage: int, number: int, model: Any) -> dict[str, Any]:
    """The evaluation of a model of a stage."""
    if stage == 2:
        return evaluate_stage2(model.world, latent_windows(ws, model))
    parts = make_transitions(ws)
    return evaluate_stage1(model, stages.fresh_model(ws, "stage1", number, parts.train), *parts)


def latent_windows(ws: Workspace, model: models.VJepa2) -> list[TensorDataset]:
    """Frozen latents of the three parts."""
    length = ws.config.pixels.data.sequence
    return [encode_states(model, part, length) for part in make_transitions(ws)]


def _trained(ws: Workspace, stage: int, number: int) -> Path:
    """Folder of a stage; ConfigError when it is not trained."""
    name = name_of(STAGES[stage], number)
    if not ws.run.done(name):
        raise ConfigError(
            f"run {ws.run.name!r} has no stage {stage} of training seed {number}: train it first"
        )
    return ws.run.stage_folder(name)


def _rows(count: int, most: int = HELD_OUT) -> Tensor:
    """At most `most` of `count` indices, evenly spread."""
    return torch.linspace(0, count - 1, min(count, most)).round().long()


def _ratio(validation: float, train: float) -> float:
    return validation / train if train > 0 else math.inf


@torch.no_grad()
def evaluate_stage1(
    model: MaskedPrediction, first: MaskedPrediction, train: Transitions, choice: Transitions,
    test: Transitions,
) -> dict[str, Any]:  # fmt: skip
    """L1 at three mask ratios, errors of training and test, signs of collapse since `first`.

    Of the hidden patches' tokens where `patch_loss` has a weight, else of the class token.
    """
    stage, device = model.stage, next(model.eval().parameters()).device

    def tokens(data: Transitions, rows: Tensor, ratio: float) -> list[Tensor]:
        """Predicted and target ones (M, D), `ratio` of the patches hidden."""
        generator, pairs = torch.Generator().manual_seed(0), []
        for index in rows.split(64):
            mask = draw_masks(len(index), model.online.vit.patches.count, ratio, generator)
            named, whole = model.predict(data[index].state.to(device), mask.to(device))
            own = (slice(None), 0)
            if stage.patch_loss and mask.any():
                own = torch.nn.functional.pad(mask.to(device), (1, 0))
            pairs.append((named[own], whole[own]))
        return [torch.cat(part) for part in zip(*pairs, strict=True)]

    few = _rows(len(test), BATCHES * stage.optim.batch)
    ladder = {str(ratio): l1_loss(*tokens(test, few, ratio)).item() for ratio in RATIOS}
    parts = [tokens(data, _rows(len(data)), stage.mask) for data in (train, test)]
    errors = [l1_loss(*part).item() for part in parts]
    constant = parts[0][1].median(dim=0).values  # the constant with the lowest L1 error
    state = test[_rows(len(test))].state.to(device)
    seen = [one.eval().target.raw(one.pixels(state)) for one in (model, first)]
    return {
        "masked_l1": ladder,
        "train": errors[0],
        "validation": errors[1],
        "ratio": _ratio(errors[1], errors[0]),
        "constant": (parts[1][1] - constant).abs().mean().item(),
        **collapse(*seen),
    }


@torch.no_grad()
def evaluate_stage2(world: WorldModel, windows: Sequence[TensorDataset]) -> dict[str, Any]:
    """Mean L1, graded losses, errors of an 8-step roll-out against copy-last, signs of collapse.

    Of test windows, beside those of training, against the latents of the encoder of stage 1.
    """
    train, _, test = windows
    batch = world.stage.optim.batch
    world.eval()
    train_total = mean_loss(world, train, batch, HELD_OUT)["loss"]
    losses = mean_loss(world, test, batch, HELD_OUT)
    total = losses.pop("loss")
    now, action, then = test[_rows(len(test), BATCHES * batch)]
    forced, true = world(now, action), then[:, :ROLLOUT]
    imagined = world.rollout(now[:, :1], action, true.shape[1])
    gaps = {"model": imagined - true, "copy_last": now[:, :1] - true}
    return {
        "mean_l1": l1_loss(forced, then).item(),
        "copy_last_l1": l1_loss(now, then).item(),
        "total": total,
        **losses,
        "train_total": train_total,
        "ratio": _ratio(total, train_total),
        # Mean L1 error (steps,) after 1, 2, ... imagined steps.
        "per_step": {who: gap.abs().mean(dim=(0, 2)).tolist() for who, gap in gaps.items()},
        # One state per window: neighbours are alike.
        **collapse(forced[:, -1], then[:, -1]),
    }


@torch.no_grad()
def example(world: WorldModel, data: TensorDataset, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """The roll-out over that window of `data` in which the latent moves farthest, on the CPU.

    True latents (T + 1, D), imagined ones (T, D); (T,) the first number of the action embedding.
    """
    now, action, then = (part[:, :steps] for part in data.tensors)
    far = int((then[:, -1] - now[:, 0]).norm(dim=1).argmax())
    imagined = world.eval().rollout(now[[far], :1], action[[far]], steps)[0]
    true = torch.cat([now[far, :1], then[far]])
    return true.cpu(), imagined.cpu(), world.embedding(action[far])[:, 0].cpu()


class Quantity(NamedTuple):
    """What seed 002 says of a number: upper limits of its grades, ranges after so many epochs."""

    limits: tuple[float, float, float]
    expected: str = ""


WORDS = ("excellent", "good", "acceptable", "poor")
GRADES = {
    1: {
        "train": Quantity((0.01, 0.05, 0.1), "1: 0.4-0.6, 5: 0.1-0.2, 10: 0.05-0.1"),
        "validation": Quantity((0.015, 0.06, 0.12), "1: 0.3-0.5, 5: 0.08-0.15, 10: 0.04-0.08"),
        "ratio": Quantity((1.2, 1.5, 2.0)),
    },
    2: {
        "total": Quantity((0.1, 0.3, 0.5), "1: 0.4-0.6, 10: 0.2-0.3, 20: 0.15-0.25"),
        "teacher_forcing": Quantity((0.08, 0.2, 0.4), "1: 0.3-0.5, 10: 0.15-0.25, 20: 0.1-0.2"),
        "rollout": Quantity((0.15, 0.4, 0.6), "1: 0.5-0.8, 10: 0.25-0.4, 20: 0.2-0.3"),
        "ratio": Quantity((1.2, 1.5, 2.0)),
    },
}
"""By stage; `ratio` is validation over training."""
BARS = {
    1: (("training L1", "train", 0.05), ("validation / training", "ratio", 1.5),
        ("L1 against a constant latent", "validation", "constant")),
    2: (("total loss", "total", 0.3), ("teacher forcing below roll-out", "teacher_forcing",
        "rollout"), ("L1 against copying the last latent", "mean_l1", "copy_last_l1")),
}  # fmt: skip
"""By stage (name, quantity, limit or the quantity that must be larger)."""


def graded(stage: int, result: dict[str, Any]) -> list[tuple[str, float, str]]:
    """(quantity, value, the seed's word) for everything that seed 002 grades; NaN is poor."""
    return [
        (name, result[name], WORDS[sum(not result[name] < limit for limit in quantity.limits)])
        for name, quantity in GRADES[stage].items()
    ]


class Criterion(NamedTuple):
    """One line of the success criteria; `passed` is None where it could not be checked."""

    name: str
    value: str
    bar: str
    passed: bool | None

    def __str__(self) -> str:
        word = {True: "pass", False: "FAIL", None: "not checked"}[self.passed]
        return f"{word:<12}{self.name}: {self.value} (bar {self.bar})"


def criteria(ws: Workspace, stage: int, number: int, result: dict[str, Any]) -> list[Criterion]:
    """Success criteria of an evaluation, with the run's validation losses and epochs."""
    rows = ws.run.records(name_of(STAGES[stage], number))
    losses = [row["validation_loss"] for row in rows if row.get("validation_loss") is not None]
    facts = models.about_model(_trained(ws, stage, number), NAMES[stage])
    return success(stage, result, losses, facts.get("epochs", 0.0), facts.get("patience", 0))


def success(
    stage: int, result: dict[str, Any], losses: Sequence[float],
    epochs: float = 0.0, patience: int = 0,
) -> list[Criterion]:  # fmt: skip
    """Criteria of a stage; `losses` are the validation losses in their order.

    `epochs` of stage 2 count without early stopping alone: to stall early is no failure.
    """
    value = "varying {varying:.3g}, effective rank {effective_rank:.1f}".format(**result)
    value += f": {result['collapsed']}" if result["collapsed"] else ""
    bar = f">= {LEAST:g} of the {('untrained', 'true')[stage - 1]} latents'"
    lines = [Criterion("no collapse", value, bar, not result["collapsed"])]
    for name, key, limit in BARS[stage]:
        limit = result.get(limit, limit)
        met = result[key] < limit
        lines.append(Criterion(name, f"{result[key]:.4f}", f"< {limit:.4g}", met))
    stable = Criterion("stable validation", "", f"last <= {STABLE:g} x lowest", None)
    if losses:
        ratio = losses[-1] / max(min(losses), 1e-12)
        stable = stable._replace(value=f"{ratio:.3f} x lowest", passed=ratio <= STABLE)
    lines.append(stable)
    if stage == 2:
        enough = None if patience else epochs >= LEAST_EPOCHS
        bar = f">= {LEAST_EPOCHS}, early stopping off"
        lines.append(Criterion("epochs", f"{epochs:.1f}", bar, enough))
    return lines


def passed(lines: Sequence[Criterion]) -> bool:
    """True when nothing failed and collapse was ruled out; what was not checked is left out."""
    return lines[0].passed is True and all(line.passed is not False for line in lines)


# --- the command
def train_model(run: Run, stage: int | None = None) -> int:
    """Train a stage, or with None both and the heads and decoder built on them."""
    ws, numbers = _open(run), (stage,) if stage else (1, 2)
    for number in numbers:
        name = name_of(STAGES[number], 0)
        _train(ws, f"stage {number}", name)
        best = models.FILES[NAMES[number]]
        print(f"checkpoint: {run.stage_folder(name) / best}.safetensors")
    if stage is None:
        _train(ws, "reward heads", "heads_vjepa2_s0")
        _train(ws, "state decoder", "decoder_vjepa2_s0")
    for number in numbers:
        _print(ws, number, stored_evaluation(ws, number, 0))
    return 0


def _train(ws: Workspace, title: str, name: str) -> None:
    if ws.done(stage_of(ws, name)):
        print(f"{title}: done before")
    exhaust(train(ws, name), title, print)


def evaluate(run: Run, stage: int | None = None) -> int:
    """Measure the stored weights anew."""
    ws = _open(run)
    for number in (stage,) if stage else (1, 2):
        model = models.load_model(_trained(ws, number, 0), NAMES[number]).to(ws.device)
        _print(ws, number, measure(ws, number, 0, model))
    return 0


def _open(run: Run) -> Workspace:
    machine.set_up()
    ws = Workspace("vjepa2", run)
    print(repr(ws))
    return ws


def _print(ws: Workspace, stage: int, result: dict[str, Any]) -> None:
    spread = f"varying {result['varying']:.4g}, effective rank {result['effective_rank']:.1f}"
    print(f"stage {stage}: {spread}")
    found = graded(stage, result)
    masked = result.get("masked_l1", {})
    found += [(f"L1 with mask {share}", value, "") for share, value in masked.items()]
    if stage == 2:
        steps = zip(*result["per_step"].values(), strict=True)
        pairs = {"mean L1": (result["mean_l1"], result["copy_last_l1"])}
        pairs |= {f"after {n} imagined steps": pair for n, pair in enumerate(steps, start=1)}
        found += [(name, own, f"copy-last {copy:.4f}") for name, (own, copy) in pairs.items()]
    for name, value, word in found:
        print(f"  {name:<24} {value:9.4f}  {word}")
    lines = criteria(ws, stage, 0, result)
    print(*(f"  {line}" for line in lines), sep="\n")
    print(f"  stage {stage} {'passed' if passed(lines) else 'FAILED'}")
