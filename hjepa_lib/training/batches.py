"""Which rows a batch holds, and the noise of its update: pure functions of seed and update.

All models, heads and decoders of the pixel comparison draw through here, so that those with one
seed see the same batches in the same order (rule 1 of the comparison), resumed or not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from hjepa_lib.files import sha256
from hjepa_lib.training.loop import step_generator


def draw_batch(rows: int, batch: int, generator: torch.Generator) -> Tensor:
    """Indices (batch,) into `rows` training transitions."""
    return torch.randint(rows, (batch,), generator=generator)


def batches_sha256(rows: int, batch: int, seed: int) -> str:
    """Hash of the first batch's indices: equal for all heads that may be compared."""
    return sha256(draw_batch(rows, batch, step_generator(seed, 0)).numpy().tobytes())


def mean_terms(
    parts: Iterable[tuple[int, Tensor, dict[str, float]]], rows: int
) -> dict[str, float]:
    """Mean loss (key `loss`, a scalar per part) and terms over `rows` rows.

    A part is (its number of rows, its loss, its terms).
    """
    sums: dict[str, float] = {}
    for count, loss, terms in parts:
        for key, value in {**terms, "loss": loss.item()}.items():
            sums[key] = sums.get(key, 0.0) + value * count / rows
    return sums


@contextlib.contextmanager
def seeded_noise(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """Inside, torch's global generators are seeded from `generator`; after, they are as before."""
    seed = int(torch.randint(2**31, (1,), generator=generator))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
