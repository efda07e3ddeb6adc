"""Which rows a batch holds, and the noise of its update: pure functions of seed and update.

All models, heads and decoders of the pixel comparison draw through here, so that those with one
seed see the same batches in the same order (rule 1 of the comparison), resumed or not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

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


@contextlib.contextmanager
def seeded_noise(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """Inside, torch's global generators are seeded from `generator`; after, they are as before."""
    seed = int(torch.randint(2**31, (1,), generator=generator))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
