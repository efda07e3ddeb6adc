"""One training loop for every model: a generator that yields a typed report per update.

The caller owns the loop (live plot, progress bar, early stop); the headless run uses the same code.
Batches are a pure function of (seed, update), and weights, optimiser and counters are stored
together, so an interrupted run (also by `kill -9`) resumes to the same result. The learning rate
warms up linearly and then follows a cosine that never rises again (PL4), or is halved in steps or
on plateaus. With `non_finite="skip"` the loop is guarded: an update without a finite loss and
gradient is lost and counted, a loss above 1e6 ends the training.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hjepa_lib.config import GuardedOptimConfig, OptimConfig
from hjepa_lib.files import write_atomic
from hjepa_lib.training import distributed

RESUME = "resume.pt"
LARGEST_LOSS = 1e6
LARGE_NORM = 100.0
MOST_SKIPPED = 50
"""Guards of `non_finite="skip"`: a loss above the first fails, a gradient norm above the second is
warned about once, and so many lost updates in a row fail as well."""
GUARD_STATE = ("mark", "waited", "halvings", "skipped", "skipped_in_a_row")
"""What only a resume file of `GuardedOptimConfig` holds."""
LossFn = Callable[[torch.Generator], tuple[Tensor, dict[str, float]]]
ValidateFn = Callable[[], dict[str, float]]


class TrainingError(ValueError):
    """Training cannot go on: a loss is not finite, or a resume file does not fit the model."""


class Report(NamedTuple):
    """One update; `validation` is filled every `validate_every` updates and at the end.

    Of a skipped update `loss` or `grad_norm` is not finite; `skipped` counts it.
    """

    update: int  # 1..updates
    updates: int
    loss: float
    terms: dict[str, float]
    lr: float
    grad_norm: float
    validation: dict[str, float]
    skipped: int = 0  # updates lost so far


def learning_rate(update: int, config: OptimConfig, halvings: int = 0) -> float:
    """Rate of the 0-based `update`: linear warm-up, then cosine to `final` * peak.

    The other schedules start at the peak: `constant` stays, `step` is halved every `decay_every`
    updates, and `plateau` has been halved `halvings` times; neither goes below `min_lr`.
    """
    if config.schedule != "cosine":
        if config.schedule == "step":
            halvings = update // config.decay_every
        rate = config.lr * 0.5**halvings
        return max(rate, min(config.min_lr, config.lr))
    warmup = max(1, round(config.warmup * config.updates))
    if update < warmup:
        return config.lr * (update + 1) / warmup
    share = (update - warmup) / max(1, config.updates - 1 - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
    return config.lr * (config.final + (1 - config.final) * cosine)


def step_generator(seed: int, update: int) -> torch.Generator:
    """A generator that depends on nothing but its arguments: what makes resuming exact."""
    return torch.Generator().manual_seed(seed * 1_000_003 + update)


class Fit:
    """Minimises `loss_fn(generator)` over the trainable tensors of `module`; iterate to train.

    `best` holds the weights with the lowest validation key `loss`; `load_best()` puts them back. A
    validation without that key (a bootstrapped loss says nothing about quality) selects nothing.
    Patience and plateaus count the validations that are not lower by `delta` than the last one that
    was; `best` takes every fall.
    Iterating again after an interruption, or in a new process with the same `folder`, goes on
    where the last checkpoint ended. Raises `TrainingError` on a non-finite loss or gradient, before
    the weights change; with `non_finite="skip"` such an update is counted in `skipped` instead. A
    `shared` fit is run by all processes of a torchrun: gradients are averaged and process 0
    validates and writes (training/distributed.py).
    """

    def __init__(
        self,
        module: nn.Module,
        loss_fn: LossFn,
        config: OptimConfig,
        *,
        seed: int,
        precision: str = "fp32",
        folder: Path | None = None,
        validate: ValidateFn | None = None,
        after_update: Callable[[], None] | None = None,
        shared: bool = False,
    ) -> None:
        self.module, self.loss_fn, self.config = module, loss_fn, config
        self.seed, self.precision, self.validate = seed, precision, validate
        self.after_update = after_update
        self.shared = shared and distributed.count() > 1
        self.path = None if folder is None else Path(folder) / RESUME
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=config.lr, weight_decay=config.weight_decay
        )
        self.guarded = config.non_finite == "skip"
        if self.guarded and self.shared:
            raise TrainingError("a shared fit cannot skip updates: its processes would disagree")
        self.update, self.stale, self.best_loss = 0, 0, math.inf
        self.mark = math.inf  # the validation loss that the next one must beat by `delta`
        self.waited = self.halvings = 0  # of the schedule `plateau`
        self.skipped = self.skipped_in_a_row = 0
        self.warned = False
        self.best: dict[str, Tensor] = {}
        if self.path is not None and self.path.exists():
            self._restore()
        if self.shared:
            self._agree()

    def __len__(self) -> int:
        return self.config.updates

    @property
    def finished(self) -> bool:
        stalled = self.config.patience and self.stale >= self.config.patience
        return self.update >= self.config.updates or bool(stalled)

    def __iter__(self) -> Iterator[Report]:
        while not self.finished:
            yield self._step()

    def _step(self) -> Report:
        rate = learning_rate(self.update, self.config, self.halvings)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.module.train()
        # A lost update must leave no trace in running averages either.
        buffers = [buffer.clone() for buffer in self.module.buffers()] if self.guarded else []
        kind = self.parameters[0].device.type
        with torch.autocast(kind, torch.bfloat16, enabled=self.precision == "bf16"):
            loss, terms = self.loss_fn(step_generator(self.seed, self.update))
        value, norm = loss.item(), math.nan
        finite = self._finite("loss", value, rate)
        if finite:
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            if self.shared:
                distributed.average_gradients(self.parameters)
            norm = nn.utils.clip_grad_norm_(self.parameters, self.config.clip or math.inf).item()
            finite = self._finite("gradient norm", norm, rate)
        if finite:
            self.optimiser.step()
            if self.after_update is not None:
                self.after_update()
            self.skipped_in_a_row = 0
        else:
            self._skip(buffers)
        self.update += 1
        validation: dict[str, float] = {}
        if self.update % self.config.validate_every == 0 or self.update == self.config.updates:
            validation = self._validate()
            self._store()
        return Report(
            self.update, self.config.updates, value, terms, rate, norm, validation, self.skipped
        )

    def _finite(self, what: str, value: float, rate: float) -> bool:
        """False for an update to be skipped; TrainingError where the settings do not skip."""
        advice = f"lower the learning rate (now {rate:.2g}) and resume from the last checkpoint"
        if not math.isfinite(value):
            if not self.guarded:
                raise TrainingError(f"the {what} is {value} at update {self.update + 1}; {advice}")
            return False
        if self.guarded and what == "loss" and value > LARGEST_LOSS:
            raise TrainingError(f"the loss is {value:.3g} at update {self.update + 1}; {advice}")
        if self.guarded and what != "loss" and value > LARGE_NORM and not self.warned:
            self.warned = True
            warnings.warn(
                f"the gradient norm is {value:.3g} at update {self.update + 1}", stacklevel=2
            )
        return True

    def _skip(self, buffers: list[Tensor]) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, before in zip(self.module.buffers(), buffers, strict=True):
                buffer.copy_(before)
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row >= MOST_SKIPPED:
            raise TrainingError(
                f"{MOST_SKIPPED} updates in a row had no finite loss and gradient; "
                "look at the data, or lower the learning rate"
            )

    def _validate(self) -> dict[str, float]:
        if self.validate is None:
            return {}
        self.module.eval()
        with torch.no_grad():
            validation = distributed.from_first(self.validate) if self.shared else self.validate()
        if "loss" not in validation:
            return validation
        if validation["loss"] < self.best_loss:
            self.best_loss = validation["loss"]
            self.best = {key: value.clone() for key, value in self.module.state_dict().items()}
        if validation["loss"] < self.mark - self.config.delta:
            self.mark, self.stale, self.waited = validation["loss"], 0, 0
        else:
            self.stale += 1
            self.waited += 1
            if self.config.schedule == "plateau":
                self._halve_on_plateau()
        return validation

    def _halve_on_plateau(self) -> None:
        if self.waited > self.config.plateau_patience:
            self.halvings, self.waited = self.halvings + 1, 0

    def load_best(self) -> None:
        """Put the best validated weights into the module (no-op without validation)."""
        if self.best:
            self.module.load_state_dict(self.best)

    def _store(self) -> None:
        if self.path is None or (self.shared and distributed.rank()):
            return
        payload = {
            "module": self.module.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "counters": (self.update, self.stale, self.best_loss),
            "best": self.best,
            "config": repr((self.config, self.seed, self.precision)),
        }
        if isinstance(self.config, GuardedOptimConfig):
            payload["guards"] = {name: getattr(self, name) for name in GUARD_STATE}
        buffer = io.BytesIO()
        torch.save(payload, buffer)
        write_atomic(self.path, buffer.getvalue())

    def _agree(self) -> None:
        """All processes of a torchrun start from the same weights and the same update."""
        first = distributed.from_first(lambda: self.update)
        if first != self.update:
            raise TrainingError(
                f"process {distributed.rank()} does not see the checkpoint {self.path} of process 0"
            )
        distributed.share_weights(self.module)

    def _restore(self) -> None:
        try:
            payload = torch.load(self.path, weights_only=True)
        except Exception as error:
            raise TrainingError(f"{self.path} is damaged: {error}") from error
        if payload["config"] != repr((self.config, self.seed, self.precision)):
            raise TrainingError(
                f"{self.path} belongs to other training settings; remove it or use a new run"
            )
        try:
            self.module.load_state_dict(payload["module"])
        except RuntimeError as error:
            raise TrainingError(f"{self.path} does not fit this model") from error
        self.optimiser.load_state_dict(payload["optimiser"])
        self.update, self.stale, self.best_loss = payload["counters"]
        self.mark = self.best_loss
        for name, value in payload.get("guards", {}).items():
            setattr(self, name, value)
        self.best = payload["best"]
