"""One way to train on transitions, and what is logged of it.

Batches and noise are functions of (seed, update) alone; the indices of a batch are drawn first, so
all models of one seed see the same transitions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hjepa_lib.config.pixels import EpochsConfig
from hjepa_lib.pixels.transitions import Transitions
from hjepa_lib.training.loop import Fit, Report, Task, draw_batch, mean_terms, seeded_noise

CHUNK = 256  # transitions encoded at once outside training: activations stay near 100 MB


def passes(update: int, epoch: int) -> int:
    """Passes through the data after `update` updates, `epoch` to a pass; a cut one counts."""
    return -(-update // epoch)


def fit(
    module: Any,
    train: Any,
    validation: Any,
    optim: EpochsConfig,
    *,
    most: int | None = None,
    **options: Any,
) -> Fit:
    """Iterate to train `module` in place on data of which `data[rows]` is a batch.

    `module.loss(batch, generator)` is (the scalar to minimise, named terms). Validated once an
    epoch, on `most` rows at most. `options` are those of the loop: seed, precision, folder, stage.
    """
    device = next(module.parameters()).device

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        batch = _at(train, draw_batch(len(train), optim.batch, generator), device)
        with seeded_noise(generator, device):
            return module.loss(batch, generator)

    def validate() -> dict[str, float]:
        return mean_loss(module, validation, optim.batch, most)

    after = getattr(module, "after_update", None)
    task = Task(module, loss, None if validation is None else validate, after)
    return Fit(task, optim.optim(len(train)), **options)


@torch.no_grad()
def mean_loss(module: Any, data: Any, batch: int, most: int | None = None) -> dict[str, float]:
    """Loss and its terms over `data`, or `most` of its rows, weighted by rows.

    Batches are shuffled, always the same way, and about as large as in training: a covariance of
    neighbours in time, or of more rows, would be another quantity.
    """
    device = next(module.parameters()).device
    rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:most]
    pieces = rows.tensor_split(max(1, len(rows) // batch))
    generator = torch.Generator().manual_seed(0)
    parts = ((len(i), *module.loss(_at(data, i, device), generator)) for i in pieces)
    return mean_terms(parts, len(rows))


def _at(data: Any, rows: Tensor, device: torch.device) -> Any:
    batch = data[rows]
    return batch.to(device) if hasattr(batch, "to") else batch


# --- frozen models ----------------------------------------------------------------------------
@torch.no_grad()
def in_chunks(
    function: Callable[[Any], tuple[Tensor | None, ...]], model: nn.Module, data: Transitions
) -> list[Tensor | None]:
    """What `function(batch)` gives for all transitions, joined; the model in evaluation mode."""
    device = next(model.eval().parameters()).device
    chunks = torch.arange(len(data)).split(CHUNK)
    columns = zip(*(function(data[rows].to(device)) for rows in chunks), strict=True)
    return [None if column[0] is None else torch.cat(column) for column in columns]


def next_latent(model: Any, batch: Any, source: str) -> Tensor:
    """(B, D) for a batch: `predictor` imagines s_{t+1}, `online` and `target` encode it."""
    if source == "predictor":
        return model.imagine(model.encode(batch.state), batch.action)
    named: Callable[[Tensor], Tensor] = getattr(model, f"encode_{source}", model.encode)
    return named(batch.next_state)


# --- what is logged (LOG-2, LOG-3) --------------------------------------------------------------
_AUXILIARIES = {"vicreg": "VICReg", "barlow_twins": "BarlowTwins", "dino": "DINO"}
_PARTS = ("sim", "std", "cov", "invariance", "redundancy", "centre", "total", "weighted")
_MODEL = {"loss": "Total_Loss", "prediction": "Prediction_Loss"} | {
    f"{kind}_{part}": f"{title}_{part.capitalize()}_Loss"
    for kind, title in _AUXILIARIES.items()
    for part in _PARTS
}
_DECODER = {"loss": "total_loss", "mse_reconstruction": "loss_mse_reconstruction"}
_PACE = {"lr": "Learning_Rate", "step": "step"}
_STAGE = {"loss": "train_loss", "lr": "learning_rate", "epochs": "epoch"}
_STAGE2 = _STAGE | {"teacher_forcing": "teacher_forcing_loss", "rollout": "rollout_loss"}
_LARP = {"loss": "train/loss_step", "step": "train/step", "inner": "epoch_inner",
         "share": "epoch_progress_main"}  # fmt: skip


def _three(terms: dict[str, str], steps: dict[str, str]) -> tuple[dict[str, str], ...]:
    places = {"train": terms | steps, "train_epoch_avg": terms, "val": terms}.items()
    return tuple({key: f"{place}/{name}" for key, name in one.items()} for place, one in places)


KEYS: dict[str, tuple[dict[str, str], ...]] = {
    **dict.fromkeys(("StdEncDec", "EncDecJepaStyle", "JEPA"),
                    _three(_MODEL, _PACE | {"weights": "Encoder_Weight_Diff_MSE"})),
    **dict.fromkeys(("JEPA_Decoder", "VJEPA2_Decoder"), _three(_DECODER, _PACE)),
    "stage1": (_STAGE, {}, {"loss": "val_loss"}),
    "stage2": (_STAGE2, {}, {"loss": "val_loss"}),
    "reward_mlp": ({"loss": "train/Loss", "lr": "train/Learning_Rate"},
                   {"loss": "train_epoch_avg/Loss", "epoch": "epoch"},
                   {"loss": "val_epoch_avg/Loss"}),
    **dict.fromkeys(("larp", "larp_copy"),
                    (_LARP, {"loss": "train_epoch_avg/loss", "epoch": "epoch"},
                     {"loss": "val_epoch_avg/loss"})),
}  # fmt: skip
"""What is trained -> {term: key} of a step, of an epoch's means, of a validation."""


class PixelLog:
    """Turns the reports of one fit into records: the `row` of `Workspace.follow`.

    A step is logged every `every` updates, an epoch with its validation, beside the plain keys that
    all trainings share. `prefix` begins with a name of `KEYS`.
    """

    def __init__(self, prefix: str, fit: Fit, every: int) -> None:
        self.prefix, self.every, self.module = prefix, every, fit.module
        self.keys, self.epoch = KEYS[prefix.split("/")[0]], fit.config.validate_every
        self.sums: dict[str, float] = {}
        self.count = 0

    def __call__(self, report: Report) -> dict[str, Any]:
        """The record of this update; {} when there is nothing to log."""
        terms = report.terms | {"loss": report.loss}
        if all(map(math.isfinite, (*terms.values(), report.grad_norm))):  # else it was skipped
            self.count += 1
            self.sums = {key: self.sums.get(key, 0.0) + value for key, value in terms.items()}
        update, epoch = report.update, self.epoch
        if update % self.every and update > 1 and not report.validation:
            return {}
        pace = {"lr": report.lr, "step": update, "epochs": update / epoch,
                "inner": (update % epoch or epoch) / epoch,
                "share": update / report.updates}  # fmt: skip
        if hasattr(self.module, "weight_difference"):
            pace["weights"] = self.module.weight_difference()
        row = {"lr": report.lr, "grad_norm": report.grad_norm, "skipped": report.skipped, **terms}
        row |= self._named(0, terms | pace)
        if report.validation:
            row["epoch"] = passes(update, epoch)
            means = {key: total / self.count for key, total in self.sums.items()}
            row |= self._named(1, means | {"epoch": row["epoch"]})
            row |= self._named(2, report.validation)
            row |= {f"validation_{key}": value for key, value in report.validation.items()}
            self.sums, self.count = {}, 0
        return row

    def _named(self, place: int, values: dict[str, float]) -> dict[str, float]:
        named = self.keys[place].items()
        return {f"{self.prefix}/{name}": values[key] for key, name in named if key in values}
