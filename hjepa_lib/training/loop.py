"""One training loop for every model: a generator of a typed report per update.

Batches are a pure function of (seed, update): what is killed resumes to the same result.
"""

import contextlib
import dataclasses
import io
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hjepa_lib.config import OptimConfig
from hjepa_lib.files import WorkbookError, sha256, told, write_atomic
from hjepa_lib.training import distributed

RESUME = "resume.pt"
LARGEST_LOSS = 1e6  # where updates are skipped: above it training ends
BORNE, LEAST_RATE = 2, 1e-6  # of a plateau: validations without progress; no halving goes below
MOST_SKIPPED = 50  # lost updates in a row that end training
COUNTERS = {
    "update": 0, "stale": 0, "best_loss": math.inf, "mark": math.inf, "waited": 0, "halvings": 0,
    "skipped": 0, "skipped_in_a_row": 0,
}  # fmt: skip
"""Where a fit begins; a validation must beat `mark` by `delta`."""
Terms = dict[str, Tensor | float]
Loss = tuple[Tensor, Terms]
ValidateFn = Callable[[], Terms]
OptimiserFn = Callable[[list[nn.Parameter], OptimConfig], torch.optim.Optimizer]


class TrainingError(WorkbookError):
    """Training cannot go on."""


class Report(NamedTuple):
    """One update; of a skipped one `loss` or `grad_norm` is not finite."""

    update: int  # 1..updates
    updates: int
    loss: float
    terms: dict[str, float]
    lr: float
    grad_norm: float
    validation: dict[str, float]  # filled every `validate_every` updates and at the end
    skipped: int = 0  # updates lost so far
    stage: str = ""  # what is trained: several fits may follow each other in one loop


@dataclass
class Task:
    """What can be trained; with another loss it is `dataclasses.replace(task, loss=mine)`."""

    module: nn.Module
    loss: Callable[[torch.Generator], Loss]  # -> (the scalar to minimise, named terms to report)
    validate: ValidateFn | None = None  # key `loss` chooses the best weights
    after_update: Callable[[], None] | None = None


def adamw(parameters: list[nn.Parameter], optim: OptimConfig) -> torch.optim.Optimizer:
    """The optimiser where no other is given; the schedule sets the rate of any."""
    return torch.optim.AdamW(parameters, lr=optim.lr, weight_decay=optim.weight_decay)


def learning_rate(update: int, config: OptimConfig, halvings: int = 0) -> float:
    """Rate of the 0-based `update`; the cosine never rises again (PL4)."""
    if config.schedule != "cosine":
        return max(config.lr * 0.5**halvings, min(LEAST_RATE, config.lr))
    warmup = max(1, round(config.warmup * config.updates))
    if update < warmup:
        return config.lr * (update + 1) / warmup
    share = (update - warmup) / max(1, config.updates - 1 - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
    return config.lr * (config.final + (1 - config.final) * cosine)


def plain(terms: Terms) -> dict[str, float]:
    """The same as numbers."""
    return {name: v.item() if isinstance(v, Tensor) else v for name, v in terms.items()}


def step_generator(seed: int, update: int) -> torch.Generator:
    """Depends on nothing but its arguments."""
    return torch.Generator().manual_seed(seed * 1_000_003 + update)


def held_out(loss: Callable[[torch.Generator], Loss], seed: int) -> ValidateFn:
    """A validation by the loss itself, of the same draw every time."""

    def validate() -> Terms:
        found, terms = loss(step_generator(seed, 0))
        return {"loss": found, **terms}

    return validate


def draw_batch(rows: int, batch: int, generator: torch.Generator) -> Tensor:
    """Indices (batch,) into `rows` training transitions."""
    return torch.randint(rows, (batch,), generator=generator)


def batches_sha256(rows: int, batch: int, seed: int) -> str:
    """Of the first batch's indices: equal for all that may be compared."""
    return sha256(draw_batch(rows, batch, step_generator(seed, 0)).numpy().tobytes())


def mean_terms(
    parts: Iterable[tuple[int, Tensor, dict[str, float]]], rows: int
) -> dict[str, float]:
    """Mean `loss` and terms of parts: (number of rows, loss, terms) each."""
    sums: dict[str, float] = {}
    for count, loss, terms in parts:
        for key, value in {**terms, "loss": loss.item()}.items():
            sums[key] = sums.get(key, 0.0) + value * count / rows
    return sums


@contextlib.contextmanager
def seeded_noise(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """Inside, torch's global generators are seeded from `generator`; then they are as before."""
    seed = int(torch.randint(2**31, (1,), generator=generator))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        if device.type == "cpu":  # as every update: torch.manual_seed formats a traceback
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)
        yield


class Fit:
    """Minimises `task.loss(generator)` over the trainable tensors of `task.module`; iterate it.

    `best` holds the weights with the lowest validation key `loss`. Patience and plateaus count the
    validations that are not lower by `delta` than the last one that was. Iterating again, also in a
    new process with the same `folder`, goes on from the last checkpoint. A loss or gradient that is
    not finite raises TrainingError before the weights change, or, of a fit that `skips`, loses that
    update. All processes of a torchrun run a `shared` fit.
    """

    def __init__(
        self, task: Task, optim: OptimConfig, *, seed: int, precision: str = "fp32",
        folder: Path | None = None, stage: str = "", shared: bool = False,
        optimiser: OptimiserFn = adamw, skips: bool = False,
    ) -> None:  # fmt: skip
        self.task, self.module, self.config = task, task.module, optim
        self.seed, self.precision, self.stage = seed, precision, stage
        self.shared = shared and distributed.count() > 1
        self.path = None if folder is None else Path(folder) / RESUME
        self.parameters = [p for p in self.module.parameters() if p.requires_grad]
        self.device = self.parameters[0].device
        self.optimiser = optimiser(self.parameters, optim)
        self.guarded = skips
        self.best: dict[str, Tensor] = {}
        vars(self).update(COUNTERS)
        if self.path and self.path.exists():
            self.resume(self.path)
        if self.shared:  # the processes of a torchrun start from the same weights and update
            if self.update != distributed.from_first(lambda: self.update):
                who = f"process {distributed.rank()}"
                raise TrainingError(f"{who} does not see the checkpoint {self.path} of process 0")
            distributed.share_weights(self.module)

    def __len__(self) -> int:
        return self.config.updates

    @property
    def finished(self) -> bool:
        return self.update >= len(self) or 0 < self.config.patience <= self.stale

    def __iter__(self) -> Iterator[Report]:
        while not self.finished:
            yield self._step()

    def _step(self) -> Report:
        rate = learning_rate(self.update, self.config, self.halvings)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.module.train()
        # A lost update leaves no trace in running averages either.
        buffers = [buffer.clone() for buffer in self.module.buffers()] if self.guarded else []
        with self._autocast():
            loss, terms = self.task.loss(step_generator(self.seed, self.update))
        value, norm, terms = loss.item(), math.nan, plain(terms)
        self.optimiser.zero_grad(set_to_none=True)
        finite = self._finite("loss", value, rate)
        if finite:
            loss.backward()
            if self.shared:
                distributed.average_gradients(self.parameters)
            norm = nn.utils.clip_grad_norm_(self.parameters, self.config.clip or math.inf).item()
            finite = self._finite("gradient norm", norm, rate)
        if finite:
            self.optimiser.step()
            if self.task.after_update:
                self.task.after_update()
            self.skipped_in_a_row = 0
        else:
            self._skip(buffers)
        self.update += 1
        validation: dict[str, float] = {}
        if self.update % self.config.validate_every == 0 or self.update == len(self):
            validation = self._validate()
            if self.path and not (self.shared and distributed.rank()):
                self.save(self.path)
        return Report(
            self.update, len(self), value, terms, rate, norm, validation, self.skipped, self.stage
        )

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def _finite(self, what: str, value: float, rate: float) -> bool:
        """False for an update to be skipped; TrainingError of a fit that does not skip."""
        finite = math.isfinite(value)
        large = finite and self.guarded and what == "loss" and value > LARGEST_LOSS
        if large or not (finite or self.guarded):
            found = f"the {what} is {value:.3g} at update {self.update + 1}"
            advice = f"lower the learning rate (now {rate:.2g}) and resume from the last checkpoint"
            raise TrainingError(f"{found}; {advice}")
        return finite

    def _skip(self, buffers: list[Tensor]) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, before in zip(self.module.buffers(), buffers, strict=True):
                buffer.copy_(before)
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row >= MOST_SKIPPED:
            what = f"{MOST_SKIPPED} updates in a row had no finite loss and gradient"
            raise TrainingError(f"{what}; look at the data, or lower the learning rate")

    def _validate(self) -> dict[str, float]:
        if self.task.validate is None:
            return {}

        def measure() -> dict[str, float]:
            return plain(self.task.validate())

        self.module.eval()
        with torch.no_grad(), self._autocast():
            validation = distributed.from_first(measure) if self.shared else measure()
        if (loss := validation.get("loss")) is None:
            return validation
        if loss < self.best_loss:
            self.best_loss = loss
            self.best = {key: value.clone() for key, value in self.module.state_dict().items()}
        if loss < self.mark - self.config.delta:
            self.mark, self.stale, self.waited = loss, 0, 0
            return validation
        self.stale, self.waited = self.stale + 1, self.waited + 1
        if self.config.schedule == "plateau" and self.waited > BORNE:
            self.halvings, self.waited = self.halvings + 1, 0
        return validation

    def load_best(self) -> None:
        """Put the best validated weights into the module, if there are any."""
        if self.best:
            self.module.load_state_dict(self.best)

    def save(self, path: Path) -> None:
        """All that `resume` needs."""
        payload = {
            "module": self.module.state_dict(),
            "best": self.best,
            "optimiser": self.optimiser.state_dict(),
            "counters": {name: getattr(self, name) for name in COUNTERS},
            "settings": self._settings(),
            "device": self.device.type,
        }
        buffer = io.BytesIO()
        torch.save(payload, buffer)
        write_atomic(path, buffer.getvalue())

    def resume(self, path: Path) -> None:
        """Go on where the fit that wrote `path` ended; warns where that was on another device.

        FileError for a damaged file, TrainingError for another model or other settings; one that is
        younger than the file had its default.
        """
        if not path.is_file():
            raise TrainingError(f"{path}, the state to go on from, does not exist")
        with told(path, "the whole state of a training of this version"):
            payload = torch.load(path, map_location="cpu", weights_only=True)  # steps stay there
            saved, device = payload["settings"], payload["device"]
            counters = {name: payload["counters"][name] for name in COUNTERS}
        moved = device != self.device.type
        saved = dataclasses.asdict(type(self.config)()) | saved
        for name, now in self._settings().items():
            before = saved[name]
            if before != now and not (moved and name == "precision"):
                what = f"{path} belongs to other training settings ({name} was {before} there and"
                raise TrainingError(f"{what} is {now} here); remove it or use a new run")
        try:
            self.module.load_state_dict(payload["module"])
            self.optimiser.load_state_dict(payload["optimiser"])
        except (RuntimeError, ValueError) as error:
            raise TrainingError(f"{path} does not fit this model") from error
        if moved:
            what = f"{path}: begun on {device}, goes on here on {self.device.type}"
            warnings.warn(f"{what}; not bit-equal to a training on one device", stacklevel=3)
        self.best = payload["best"]
        vars(self).update(counters)

    def _settings(self) -> dict[str, Any]:
        return dataclasses.asdict(self.config) | {"seed": self.seed, "precision": self.precision}
