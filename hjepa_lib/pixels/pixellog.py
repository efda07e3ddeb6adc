"""Log records of the pixel models: the keys of seed 001 (LOG-2, LOG-3) from the loop's reports.

`{StdEncDec, EncDecJepaStyle, JEPA}/train/...` every `log_every` updates, `.../val/...` and
`.../train_epoch_avg/...` once an epoch; `JEPA_Decoder/...` likewise. `step` counts updates, `epoch`
passes. The plain keys `loss`, `lr` and `grad_norm` stand beside them for the figures shared with
other models.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from hjepa_lib.pixels.models import PixelJepa
from hjepa_lib.pixels.training import passes
from hjepa_lib.training.loop import Fit, Report

PREFIXES = {"enc_dec": "StdEncDec", "enc_dec_jepa": "EncDecJepaStyle", "jepa": "JEPA"}
DECODER_PREFIXES = {"jepa": "JEPA_Decoder", "vjepa2": "VJEPA2_Decoder"}
REGULARISERS = {"vicreg": "VICReg", "barlow_twins": "BarlowTwins", "dino": "DINO"}
Named = Callable[[dict[str, float]], dict[str, float]]


class PixelLog:
    """Turns reports into records; `named` maps {"loss", terms...} to the keys of one section."""

    def __init__(
        self,
        prefix: str,
        fit: Fit,
        named: Named,
        every: int,
        extra: Callable[[], dict[str, float]] | None = None,
    ) -> None:
        self.prefix, self.named, self.every, self.extra = prefix, named, every, extra
        self.epoch = fit.config.validate_every
        self.sums: dict[str, float] = {}
        self.count = 0

    def epoch_of(self, report: Report) -> int:
        """Passes done, the last one counted also when it was cut short."""
        return passes(report.update, self.epoch)

    def record(self, report: Report) -> dict[str, Any]:
        """The record of this update without stage and step; {} when there is nothing to log."""
        values = {**report.terms, "loss": report.loss}
        if all(map(math.isfinite, (*values.values(), report.grad_norm))):  # else it was skipped
            self.count += 1
            for key, value in values.items():
                self.sums[key] = self.sums.get(key, 0.0) + value
        row: dict[str, Any] = {}
        if report.update % self.every == 0 or report.update == 1 or report.validation:
            row |= {"loss": report.loss, "lr": report.lr, "grad_norm": report.grad_norm}
            row["skipped"] = report.skipped
            now = self.named(values) | {"Learning_Rate": report.lr, "step": report.update}
            now |= self.extra() if self.extra is not None else {}
            row |= self._section("train", now)
        if report.validation:
            if self.count:  # else every update of this epoch was skipped
                average = {key: total / self.count for key, total in self.sums.items()}
                row |= self._section("train_epoch_avg", self.named(average))
            row |= self._section("val", self.named(report.validation))
            row |= {"validation_loss": report.validation["loss"], "epoch": self.epoch_of(report)}
            self.sums, self.count = {}, 0
        return row

    def _section(self, name: str, values: dict[str, float]) -> dict[str, float]:
        return {f"{self.prefix}/{name}/{key}": value for key, value in values.items()}


def model_log(model: Any, fit: Fit) -> PixelLog:
    """The log of an encoder-decoder or a JEPA."""
    auxiliary = model.config.auxiliary

    def named(values: dict[str, float]) -> dict[str, float]:
        found = {"Total_Loss": values["loss"]}
        for key, value in values.items():
            if key == "prediction":
                found["Prediction_Loss"] = value
            elif key.startswith(auxiliary.kind):
                part = key.removeprefix(auxiliary.kind + "_").capitalize()
                found[f"{REGULARISERS[auxiliary.kind]}_{part}_Loss"] = value
                if part == "Total":
                    weighted = f"{REGULARISERS[auxiliary.kind]}_Weighted_Loss"
                    found[weighted] = auxiliary.weight * value
        return found

    extra = None
    if isinstance(model, PixelJepa):

        def extra() -> dict[str, float]:
            return {"Encoder_Weight_Diff_MSE": model.weight_difference()}  # fmt: skip

    return PixelLog(PREFIXES[model.name], fit, named, model.config.log_every, extra)


def decoder_log(name: str, fit: Fit, every: int) -> PixelLog:
    """The log of a state decoder."""

    def named(values: dict[str, float]) -> dict[str, float]:
        error = values.get("mse_reconstruction", values["loss"])
        return {"total_loss": values["loss"], "loss_mse_reconstruction": error}

    return PixelLog(DECODER_PREFIXES.get(name, f"{name}_Decoder"), fit, named, every)
