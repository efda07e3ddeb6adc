"""Tiny pixel data and settings for the tests of the pixel models (not a test module)."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from hjepa_lib.config import Config, profile
from hjepa_lib.config.pixels import PixelsConfig
from hjepa_lib.pixels.stages import pixel_stages
from hjepa_lib.pixels.transitions import PixelShapes, Transitions
from hjepa_lib.runs.run import Run
from hjepa_lib.runs.workspace import Workspace

SIDE, STACK, ACTIONS = 16, 3, 4
SHAPES = PixelShapes(1, STACK, SIDE, "discrete", ACTIONS)
TINY: dict[str, Any] = {
    "device": "cpu",
    "precision": "fp32",
    "pixels.seeds": 1,
    "pixels.environment.image_size": SIDE,
    "pixels.environment.stack": STACK,
    "pixels.encoder.latent_dim": 8,
    "pixels.encoder.heads": 2,
    "pixels.encoder.head_dim": 4,
    "pixels.encoder.mlp_dim": 16,
    "pixels.encoder.cnn_filters": 4,
    "pixels.decoder.patch": 4,
    "pixels.decoder.dim": 16,
    "pixels.decoder.depth": 1,
    "pixels.decoder.heads": 2,
    "pixels.decoder.head_dim": 8,
    "pixels.decoder.mlp_dim": 16,
    "pixels.decoder.optim.updates": 4,
    "pixels.decoder.optim.batch": 8,
    "pixels.jepa.hidden": (16, 16),
    "pixels.action_dim": 6,
    "pixels.optim.updates": 6,
    "pixels.optim.batch": 8,
    "pixels.data.sequence": 6,
    "pixels.vjepa2.stage1.patch": 4,
    "pixels.vjepa2.stage1.depth": 1,
    "pixels.vjepa2.stage1.hidden": (16,),
    "pixels.vjepa2.stage1.optim.updates": 6,
    "pixels.vjepa2.stage1.optim.batch": 8,
    "pixels.vjepa2.stage2.depth": 1,
    "pixels.vjepa2.stage2.heads": 2,
    "pixels.vjepa2.stage2.head_dim": 4,
    "pixels.vjepa2.stage2.mlp_dim": 16,
    "pixels.vjepa2.stage2.rollout_steps": 2,
    "pixels.vjepa2.stage2.optim.updates": 6,
    "pixels.vjepa2.stage2.optim.batch": 8,
    "pixels.reward.hidden": 8,
    "pixels.reward.layers": 1,
    "pixels.reward.optim.updates": 4,
    "pixels.reward.optim.batch": 8,
    "pixels.reward.seeds": 1,
    "pixels.reward.study_transitions": 100,
}
ELSEWHERE: dict[str, Any] = {
    "pixels.encoder.patch": 4,
    "pixels.encoder.depth": 1,
    "pixels.encoder.temporal_depth": 1,
    "pixels.encoder.temporal_heads": 2,
    "pixels.encoder.temporal_mlp": 16,
    "pixels.encoder.mlp_hidden": 16,
}
"""Small values of settings that act only after the encoder has been changed."""


def tiny_config(**changes: Any) -> Config:
    """Keywords are keys below `pixels` with "__" for the dots: encoder__kind="vit"."""
    dotted = {f"pixels.{key.replace('__', '.')}": value for key, value in changes.items()}
    return profile("smoke").override(TINY | ELSEWHERE, strict=False).override(dotted)


def tiny_pixels(**changes: Any) -> PixelsConfig:
    return tiny_config(**changes).pixels


def tiny_transitions(episodes: int = 6, length: int = 10, continuous: bool = False) -> Transitions:
    """A bright square that the action moves by one of four directions, on a dark floor."""
    generator = torch.Generator().manual_seed(0)
    steps = torch.tensor([[2, 0], [-2, 0], [0, 2], [0, -2]])
    frames, now, after, origin, action, episode = [], [], [], [], [], []
    for number in range(episodes):
        place = torch.randint(0, SIDE - 4, (2,), generator=generator)
        first = len(frames)
        frames.append(picture(place))
        for _ in range(length):
            choice = int(torch.randint(0, ACTIONS, (1,), generator=generator))
            place = (place + steps[choice]).clamp(0, SIDE - 4)
            now.append(len(frames) - 1)
            frames.append(picture(place))
            after.append(len(frames) - 1)
            origin.append(first)
            action.append(choice)
            episode.append(number)
    moves = torch.tensor(action)
    if continuous:
        moves = steps[moves].float() / 2
    return Transitions(
        frames=torch.stack(frames), now=torch.tensor(now), after=torch.tensor(after),
        origin=torch.tensor(origin), action=moves, reward=torch.zeros(len(now)),
        episode=torch.tensor(episode), action_kind="continuous" if continuous else "discrete",
        action_dim=2 if continuous else ACTIONS, stack=STACK, meta={"environment": "square"},
    )  # fmt: skip


def picture(place: torch.Tensor) -> torch.Tensor:
    """(1, SIDE, SIDE) uint8."""
    frame = torch.full((1, SIDE, SIDE), 20, dtype=torch.uint8)
    y, x = place.tolist()
    frame[:, y : y + 4, x : x + 4] = 230
    return frame


def collected(**changes: Any) -> PixelsConfig:
    """Settings of ten short episodes of Drift at 16 px; keywords as in `tiny_config`."""
    small = {"environment__image_size": 16, "environment__max_steps": 12, "data__transitions": 0}
    dotted = {f"pixels.{key.replace('__', '.')}": v for key, v in (small | changes).items()}
    return profile("smoke").override(dotted).pixels


def skilled(**changes: Any) -> PixelsConfig:
    """`collected` by 128 steps of PPO with a small policy, actions repeated twice."""
    small = {"data__method": "ppo", "data__episodes": 3, "ppo__policy": "MlpPolicy"}
    return collected(**small | {"ppo__epochs": 1, "data__transitions": 240} | changes)


def numbered(lengths: list[int], stack: int = 3, skip: int = 0) -> Transitions:
    """Episodes of these lengths whose frames hold the running number of the frame."""
    count = sum(length * (skip + 1) + 1 for length in lengths)
    frames = torch.arange(count, dtype=torch.uint8)[:, None, None, None].repeat(1, 1, 8, 8)
    rows, origin = [], 0
    for episode, length in enumerate(lengths):
        starts = [origin + step * (skip + 1) for step in range(length)]
        rows += [(now, now + skip + 1, origin, episode) for now in starts]
        origin += length * (skip + 1) + 1
    now, after, first, episode = torch.tensor(rows).T
    order = torch.arange(len(rows))
    return Transitions(
        frames, now, after, first, order % 4, order.float(), episode, "discrete", 4, stack
    )


def tiny_batch(rows: int = 8, **options: Any):
    return tiny_transitions(**options).batch(torch.arange(rows))


def with_section(config: PixelsConfig, section: str, **values: Any) -> PixelsConfig:
    changed = dataclasses.replace(getattr(config, section), **values)
    return dataclasses.replace(config, **{section: changed})


def tiny_workspace(root, config: Config | None = None, name: str = "tiny") -> Workspace:
    """A run below `root` whose transitions are `tiny_transitions`."""
    ws = Workspace("test", Run.create(name, config or tiny_config(), root))
    stage = pixel_stages(ws.config)["pixel_data"]
    with ws.run.stage(stage.name, stage.folder, ws.key(stage)) as folder:
        tiny_transitions().save(folder)
    return ws


TINY_GRID = {
    "size": 6, "episodes": 6, "steps": 8, "latent_dim": 16, "action_dim": 8, "encoder_depth": 1,
    "depth": 1, "heads": 2, "head_dim": 8, "mlp_dim": 16,
}  # fmt: skip
"""Settings of `pixels.grid`."""
