"""Level 1 on several devices: one process for each, started by torchrun.

Each draws the whole batch and encodes its own rows; roll-outs are gathered before the loss, so that
variances, covariances and gradients are those of one process.
"""

import os
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hjepa_lib.config import ConfigError
from hjepa_lib.data.windows import WindowBatch
from hjepa_lib.models.level1 import Rollout

Value = TypeVar("Value")


def start() -> None:
    """Join the processes of a torchrun, if it started this one; each takes its own CUDA device."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def stop() -> None:
    """Leave the group; the process goes on alone."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def count() -> int:
    """Processes that train together; 1 without torchrun."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process; 0 writes the files."""
    return dist.get_rank() if count() > 1 else 0


def from_first(make: Callable[[], Value]) -> Value:
    """What `make()` returns in process 0, in all of them; the others wait for it."""
    if count() == 1:
        return make()
    box = [make() if rank() == 0 else None]
    dist.broadcast_object_list(box)
    return box[0]


def own_rows(batch: WindowBatch) -> WindowBatch:
    """The rows of the whole batch that this process encodes; ConfigError for unequal shares."""
    size, parts = len(batch.positions), count()
    if parts == 1:
        return batch
    if size % parts:
        raise ConfigError(f"level1.optim.batch={size} cannot be shared by {parts} processes")
    rows = slice(rank() * size // parts, (rank() + 1) * size // parts)
    positions, actions, layout, world, record = batch
    kept = record and record.take(rows)
    return WindowBatch(positions[rows], actions[rows], layout.index(rows), world, kept)


def gather_rollout(rollout: Rollout) -> Rollout:
    """The roll-out of the whole batch, in its order, from those of all processes."""
    if count() == 1:
        return rollout
    from torch.distributed.nn.functional import all_gather  # not every build of torch has it

    def whole(part: Tensor, rows: int = 0) -> Tensor:
        return torch.cat(all_gather(part.contiguous()), rows)

    encodings, predictions = whole(rollout.encodings), whole(rollout.predictions, 1)
    return Rollout(encodings, predictions, whole(rollout.actions))


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Every gradient becomes its mean over the processes."""
    for one in parameters if count() > 1 else ():
        if one.grad is not None:
            total = one.grad.contiguous()
            dist.all_reduce(total)
            one.grad.copy_(total / count())


@torch.no_grad()
def share_weights(module: nn.Module) -> None:
    """Weights and buffers of process 0 in all of them."""
    for tensor in module.state_dict().values():
        dist.broadcast(tensor, 0)
