"""One way to train on transitions.

The indices of a batch are drawn first: all models of one seed see the same transitions.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hjepa_lib.config.pixels import EpochsConfig
from hjepa_lib.pixels.transitions import Transitions
from hjepa_lib.training.loop import Fit, Task, draw_batch, mean_terms, seeded_noise

CHUNK = 256  # transitions encoded at once outside training: activations stay near 100 MB


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
    return Fit(task, optim.optim(len(train)), skips=True, **options)


@torch.no_grad()
def mean_loss(module: Any, data: Any, batch: int, most: int | None = None) -> dict[str, float]:
    """Loss and its terms over `data`, or `most` of its rows, weighted by rows.

    Batches are shuffled, always alike, and about as large as in training: a covariance of
    neighbours, or of more rows, would be another quantity.
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


@torch.no_grad()
def in_chunks(
    function: Callable[[Any], dict[str, Tensor]], data: Transitions, device: torch.device | str,
    rows: Tensor | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """What `function(batch)` gives by name for `rows` of the transitions, all if None, joined."""
    rows = torch.arange(len(data)) if rows is None else rows
    parts = [function(data[few].to(device)) for few in rows.split(CHUNK)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
