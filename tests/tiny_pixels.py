"""Tiny data and settings for the tests of the pixel models."""

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from tiny import seeded

from hjepa_lib.config import profile
from hjepa_lib.pixels.models import build_pixel_model
from hjepa_lib.pixels.stages import pixel_stages
from hjepa_lib.pixels.transitions import PixelShapes, Transitions
from hjepa_lib.runs.run import Run
from hjepa_lib.runs.workspace import Workspace

SIDE, STACK, ACTIONS = 16, 3, 4
SHAPES = PixelShapes(1, STACK, SIDE, "discrete", ACTIONS)


def under(section, **values):
    """Settings of one section of `pixels` as keywords of `tiny_config`."""
    return {f"{section.replace('.', '__')}__{key}": value for key, value in values.items()}


def dotted(changes):
    return {f"pixels.{key.replace('__', '.')}": value for key, value in changes.items()}


BUDGET = {"updates": 6, "batch": 8, "schedule": "constant"}
TINY = {"device": "cpu", "precision": "fp32"} | dotted({
    "seeds": 1, "action_dim": 6, "data__sequence": 6,
    **under("environment", image_size=SIDE, stack=STACK),
    **under("encoder", latent_dim=8, heads=2, head_dim=4, mlp_dim=16, cnn_filters=4, places=2),
    **under("decoder", patch=4, dim=16, depth=1, heads=2, head_dim=8, mlp_dim=16),
    **under("decoder.optim", updates=4, batch=8, schedule="constant"),
    **under("jepa", hidden=(16, 16), lr=0.0),
    **under("optim", **BUDGET), **under("vjepa2.stage1", patch=4, width=8, depth=1, hidden=(16,)),
    **under("vjepa2.stage2", depth=1, heads=2, head_dim=4, mlp_dim=16, rollout_steps=2),
    **under("vjepa2.stage1.optim", **BUDGET), **under("vjepa2.stage2.optim", **BUDGET),
    **under("reward", hidden=8, layers=1, labels=(20, 40)),
    **under("reward.optim", updates=4, batch=8),
})  # fmt: skip
TINY_COMMAND = TINY | {
    "pixels.jepa.hidden": 16,
    "pixels.vjepa2.stage1.hidden": 16,
    "pixels.reward.labels": "20+40",
}
"""`TINY` as a command line can say it, one `key=value` each."""
ELSEWHERE = dotted(under("encoder", patch=4, depth=1, temporal_depth=1, mlp_hidden=16))
"""Small values of settings that act with another encoder."""


def tiny_config(**changes):
    """Keywords are keys below `pixels` with "__" for the dots: encoder__kind="vit"."""
    return profile("smoke").override(TINY | ELSEWHERE, strict=False).override(dotted(changes))


def tiny_pixels(**changes):
    return tiny_config(**changes).pixels


def fresh(name, data=SHAPES, seed=0, **changes):
    config = tiny_pixels(**changes)
    torch.manual_seed(seed)
    return build_pixel_model(name, config, data)


def two_stages_model(kind, seed=0, **changes):
    """A `kind` of module of vjepa2.py, wider than `tiny_pixels`, that cuts pixels."""
    wide = {"encoder__kind": "cnn", "encoder__latent_dim": 16, "vjepa2__stage1__width": 16,
            "encoder__mlp_dim": 32, "vjepa2__stage2__rollout_steps": 3,
            "vjepa2__stage2__output": "latent"}  # fmt: skip
    torch.manual_seed(seed)
    return kind(tiny_pixels(**wide | changes), SHAPES)


def random_window(count):
    """What `WorldModel.loss` takes: latents, actions, next latents of six steps."""
    z = torch.randn(count, 7, 16, generator=seeded(1))
    return z[:, :-1], torch.randint(ACTIONS, (count, 6), generator=seeded(2)), z[:, 1:]


def tiny_transitions(episodes=6, length=10, continuous=False):
    """A bright square on a dark floor, moved in one of four directions."""
    generator = seeded(0)
    steps = torch.tensor([[2, 0], [-2, 0], [0, 2], [0, -2]])
    rows, action, places = [], [], []
    for episode in range(episodes):
        place = torch.randint(0, SIDE - 4, (2,), generator=generator)
        first = len(places)
        places.append(place)
        for _ in range(length):
            action.append(int(torch.randint(0, ACTIONS, (1,), generator=generator)))
            place = (place + steps[action[-1]]).clamp(0, SIDE - 4)
            rows.append((len(places) - 1, len(places), first, episode))
            places.append(place)
    frames = torch.stack([*map(picture, places)])
    moves, kind, size = torch.tensor(action), "discrete", ACTIONS
    if continuous:
        moves, kind, size = steps[moves].float() / 2, "continuous", 2
    now, after, origin, episode = torch.tensor(rows).T
    return Transitions(frames, now, after, origin, moves, torch.zeros(len(now)),
                       episode, kind, size, STACK, {"environment": "square"},
                       torch.stack(places).float())  # fmt: skip


def picture(place):
    """(1, SIDE, SIDE) uint8."""
    frame = torch.full((1, SIDE, SIDE), 20, dtype=torch.uint8)
    y, x = place.tolist()
    frame[:, y : y + 4, x : x + 4] = 230
    return frame


def tiny_batch():
    return tiny_transitions().batch(torch.arange(8))


def collected(**changes):
    """Settings of ten short episodes of Drift at 16 px."""
    small = {"environment__id": "hjepa/Drift-v0", "environment__image_size": 16,
             "environment__max_steps": 12, "environment__stack": 4, "data__episodes": 10,
             "data__transitions": 0}  # fmt: skip
    return profile("smoke").override(dotted(small | changes)).pixels


def skilled(**changes):
    """`collected` by PPO, actions repeated twice."""
    small = {"data__method": "ppo", "data__episodes": 3}
    return collected(**small | {"data__transitions": 240} | changes)


class Counting(gymnasium.Env):
    """Frame k of an episode of `length` steps is k everywhere, and so is its reward."""

    observation_space = spaces.Box(0, 255, (16, 16, 1), np.uint8)
    action_space = spaces.Discrete(3)
    reward = 1.0

    def __init__(self, length=5, cut=False, render_mode=None):
        self.length, self.cut, self.render_mode = length, cut, render_mode
        self.actions = []

    def _frame(self):
        return np.full((16, 16, 1), self.count, np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return self._frame(), {}

    def step(self, action):
        self.count += 1
        self.actions.append(action)
        over = self.count >= self.length
        reward = self.reward * self.count
        return self._frame(), reward, over and not self.cut, over and self.cut, {}


def numbered(lengths, stack=3, skip=0):
    """Episodes of these lengths; each frame holds its running number."""
    rows, origin = [], 0
    for episode, length in enumerate(lengths):
        starts = [origin + step * (skip + 1) for step in range(length)]
        rows += [(now, now + skip + 1, origin, episode) for now in starts]
        origin += length * (skip + 1) + 1
    frames = torch.arange(origin, dtype=torch.uint8)[:, None, None, None].repeat(1, 1, 8, 8)
    now, after, first, episode = torch.tensor(rows).T
    order = torch.arange(len(rows))
    return Transitions(
        frames, now, after, first, order % 4, order.float(), episode, "discrete", 4, stack
    )


def tiny_workspace(root, config=None, name="tiny", data=None):
    """A run below `root` whose transitions are `tiny_transitions`, or `data`."""
    ws = Workspace("test", Run.create(name, config or tiny_config(), root))
    stage = pixel_stages(ws.config)["pixel_data"]
    with ws.run.stage(stage.name, stage.folder, ws.key(stage)) as folder:
        (data or tiny_transitions()).save(folder)
    return ws


TINY_GRID = {
    "size": 6, "episodes": 6, "steps": 8, "latent_dim": 16, "action_dim": 8, "encoder_depth": 1,
    "depth": 1, "heads": 2, "head_dim": 8, "mlp_dim": 16,
}  # fmt: skip
"""Settings of `pixels.grid`."""


def descend(model, optimiser, updates, lr):
    batch, found = tiny_batch(), []
    steps = optimiser([p for p in model.parameters() if p.requires_grad], lr=lr)
    for _ in range(updates):
        loss, terms = model.loss(batch)
        steps.zero_grad()
        loss.backward()
        steps.step()
        if hasattr(model, "after_update"):
            model.after_update()
        found.append((loss.item(), terms))
    return found
