"""Compute of a planner, and memory of an update: counted by torch on one sample."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hjepa_lib.models.level1 import Jepa
from hjepa_lib.models.local import Scene
from hjepa_lib.planning.planner import Planner


def count(call: Callable[[], object]) -> int:
    """FLOPs of one call, backward passes included; multiply-adds count as 2."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def planner_flops(
    planner: Planner, model: Jepa, frame: Tensor | None = None, steps: int = 200,
    scene: Scene | None = None,
) -> tuple[float, float]:  # fmt: skip
    """(FLOPs, model transitions) per environment step and trial, by one real search of each level.

    Searches count over their intervals, an encoding over `every`; what an episode begins with,
    which for a graph depends on its first frame (1, C, Hpx, Wpx), over its `steps`: planners of one
    graph share this part. Dijkstra's search is not counted. A step is the world's: in PointMaze it
    is five of the environment.
    """
    device = model.pixel_mean.device
    if frame is None:
        frame = torch.zeros(1, *model.frame, dtype=torch.uint8)
    frame = frame.to(device)
    latent = torch.zeros(1, model.latent_dim, device=device)
    planner.reset([0])
    with torch.no_grad():
        planner.scene = scene = scene or model.scene(frame)
    flops, transitions = count(partial(planner.geometry.begin, scene, latent)) / steps, 0.0
    goal = planner.geometry.embed_goal(latent)
    for look in (model.encode, model.scene):
        flops += count(partial(look, frame)) / planner.every
    for number in range(len(planner.levels), 0, -1):
        level = planner.levels[number - 1]
        every, config = level.replan or planner.every, level.config
        flops += count(partial(planner.replan, number, latent, goal)) / every
        members = 1 if number > 1 else len(model.predictors)
        candidates = config.samples * config.iterations * members + (number > 1)
        transitions += candidates * config.horizon / every
    planner.reset()
    return flops, transitions


def update_bytes(module: nn.Module, loss: Callable[[], Tensor]) -> int:
    """Bytes of one update of `module` that minimises `loss()`, whatever ran before.

    Weights, EMA copies too, a gradient and two Adam moments per trained one, and each storage that
    autograd keeps for the backward pass.
    """
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept: dict[int, Tensor] = {}  # holds the tensors, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in own:
            kept[address] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss()
    activations = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    weights = sum((1 + 3 * p.requires_grad) * p.nbytes for p in module.parameters())
    return weights + activations
