"""Two Rooms whose door is patrolled: a guard walks up and down across the opening.

Contact ends an episode as failed: the dot stays for ever, and fades. One frame does not tell where
the guard is going, nor how fast, so an observation has three. A level 1 with `level1.foresight`
learns from recordings where it goes and that contact is the end.
"""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from hjepa_lib.worlds.base import World, bound
from hjepa_lib.worlds.layout import DOOR_HALF, DOOR_RANGE, FIXED, Layout, render
from hjepa_lib.worlds.two_rooms import CLEARANCE, TwoRooms, oracle_action, oracle_length

PERIODS = (12, 30)  # steps of the guard's way up and down, whole numbers, drawn per episode
REACH = 6.0  # px from the door's centre where the guard turns: 2 px beyond the lips
CONTACT = 3.0  # px: dot and guard touch when their centres come nearer
FADED = 0.5  # brightness of a caught dot in units of a free one's
BUDGET = 1.5  # steps of a task in units of the oracle's
X, Y, PHASE, PERIOD, CAUGHT, LEFT, PAST = range(7)
"""Columns of a state; PHASE is a share of the period, CAUGHT counts steps from the contact, LEFT
those of the task's budget; from PAST on are the dot's two places before, (x, y) each."""
LEAVES = 1.0, 4.0  # px from the door's centre: there the guard walks away, and the rule goes
_WAITS = PERIODS[1] + 1  # steps that the oracle may wait
_HORIZON, _PASSAGE = 48, 16  # steps of its plan, and of its way past the guard
# Parts of the opening that the oracle may aim at: centre off the door's, half-width, px.
_PARTS = torch.tensor([[0, DOOR_HALF - CLEARANCE], *([c, 0.5] for c in (-3, -1.5, 0, 1.5, 3))])


def _beside(row: Tensor, others: Tensor) -> Tensor:
    """(B,) -> (B, 1, ...), to act on `others` (B, ...)."""
    return row.reshape(-1, *[1] * (others.ndim - 1))


class PatrolledDoor(World):
    """B rooms; three frames of dot, walls, guard; states have the columns above."""

    frame_shape = (3, 65, 65)
    stacked = 3
    action_cap = 1.8
    slides = True
    state_size = 10
    max_steps = 120
    trials: ClassVar = {"validation": 100, "test": 200}

    def __init__(self, layout: Layout, dynamics: str = "slide", seed: int = 0) -> None:
        self._rooms = TwoRooms(layout, "slide", seed=seed)
        self.layout, self.rows = layout, self._rooms.rows

    @classmethod
    def layout_set(cls, name: str) -> np.ndarray:
        """(1, 2) int16: PLDM's wall, a door drawn by a seed."""
        door = np.random.RandomState(8).randint(DOOR_RANGE[0], DOOR_RANGE[1] + 1)
        return np.array([[FIXED[0], door]], np.int16)

    @classmethod
    def at_rest(cls, place: Tensor) -> Tensor:
        """States (..., 10) of a dot that has been at `place` (..., 2) px; the guard is above."""
        state = place.new_zeros(*place.shape[:-1], cls.state_size)
        state[..., PERIOD], state[..., LEFT] = PERIODS[1], cls.max_steps
        state[..., :2], state[..., PAST:] = place, place.repeat(*[1] * (place.ndim - 1), 2)
        return state

    @classmethod
    def draw_tasks(
        cls, task_set: str, split: str, n: int, generator: torch.Generator
    ) -> tuple[Layout, Tensor, Tensor]:
        """Each with 1.5 times the steps that the oracle needs."""
        layout, start, goal = super().draw_tasks(task_set, split, n, generator)
        world = cls(layout)
        world.reset(start)
        needed = torch.full((n,), cls.max_steps)
        for step in range(cls.max_steps):
            there = world.reached(world.position, goal)
            needed = torch.where(there, needed.clamp(max=step), needed)
            if (needed <= step).all():
                break
            world.step(world.oracle_action(goal, cls.action_cap))
        start[:, LEFT] = (BUDGET * needed).ceil()
        return layout, start, goal

    def sample_start_goal(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """States (B, 10) in different rooms, beyond the guard's reach."""
        n = self.layout.batch
        low, high = PERIODS
        period = torch.randint(low, high + 1, (n,), generator=generator).float()
        phases = torch.rand(2, n, generator=generator)
        states = []
        for place, phase in zip(self._rooms.sample_start_goal(generator), phases, strict=True):
            state = self.at_rest(place)
            state[:, PERIOD], state[:, PHASE] = period, phase
            states.append(state)
        return states[0], states[1]

    def free(self, state: Tensor) -> Tensor:
        """(B,) bool: in no wall, and with a guard."""
        return self._rooms.free(state[:, :2]) & (state[:, PERIOD] >= 1)

    def reached(self, state: Tensor, goal: Tensor) -> Tensor:
        """(...) bool: within sqrt(2) px, not caught, and in time."""
        return super().reached(state, goal) & (state[..., CAUGHT] == 0) & (state[..., LEFT] >= 0)

    def reset(self, position: Tensor) -> Tensor:
        """Start at states (B, 10) whose dots have been where they are."""
        self.position = position.to(self.layout.wall_x).clone()
        self.position[:, PAST:] = self.position[:, :2].repeat(1, 2)
        self._rooms.rows = self.rows
        self._rooms.reset(self.position[:, :2])
        return self.position

    def step(self, action: Tensor) -> Tensor:
        """Move by `action` (B, 2) px unless caught."""
        old, here = self.position, self.position[:, :2]
        held = old[:, CAUGHT] > 0
        there = torch.where(held[:, None], here, self._rooms.step(action))
        held = held | self._touches(here, there, self._guard(old), self._guard(old, 1))
        self.position = old.clone()
        self.position[:, :2] = self._rooms.position = there
        self.position[:, PHASE] = (old[:, PHASE] + 1 / old[:, PERIOD]) % 1
        self.position[:, CAUGHT] = (old[:, CAUGHT] + 1) * held
        self.position[:, LEFT] = old[:, LEFT] - 1
        self.position[:, PAST:] = torch.cat((here, old[:, PAST : PAST + 2]), 1)
        return self.position

    def render(self, position: Tensor | None = None) -> Tensor:
        """(B, ..., stacked * 3, 65, 65) uint8 of states (B, ..., 10)."""
        state = self.position if position is None else position
        layout = self.layout.to(state.device)
        frames = []
        for ago in reversed(range(self.stacked)):
            column = PAST + 2 * ago - 2 if ago else X
            frame = render(state[..., column : column + 2], layout)
            faded = (FADED * frame[..., 0, :, :]).to(torch.uint8)
            caught = (state[..., CAUGHT] > ago)[..., None, None]
            frame[..., 0, :, :] = torch.where(caught, faded, frame[..., 0, :, :])
            y = self._guard(state, -ago)
            guard = torch.stack((_beside(layout.wall_x, y).expand_as(y), y), -1)
            frames += [frame, render(guard, layout)[..., :1, :, :]]
        return torch.cat(frames, -3)

    def crosses_wall(self, here: Tensor, there: Tensor) -> Tensor:
        """(B, ...) bool, as `TwoRooms`."""
        return self._rooms.crosses_wall(here, there)

    def _guard(self, state: Tensor, ahead: Tensor | int = 0) -> Tensor:
        """The guard's y (B, ...) px so many steps after states (B, ..., 10).

        At its upper end at phase 0, at its lower one at 1/2.
        """
        phase = (state[..., PHASE] + ahead / state[..., PERIOD]) % 1
        return _beside(self.layout.door_y, phase) + REACH * (1 - (4 * phase - 2).abs())

    def _touches(self, here: Tensor, there: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """(B, ...) bool: contact while the dot goes from `here` to `there`, (B, ..., 2) px.

        So does the guard from y `before` to `after` (B, ...).
        """
        x = _beside(self.layout.wall_x, before).expand_as(before)
        gap = here - torch.stack((x, before), -1)
        change = there - torch.stack((x, after), -1) - gap
        share = -(gap * change).sum(-1) / change.square().sum(-1).clamp(min=1e-12)
        return (gap + share.clamp(0, 1)[..., None] * change).norm(dim=-1) < CONTACT

    def oracle_length(self, start: Tensor, goal: Tensor) -> Tensor:
        """Shortest path (B,) px, the guard left out."""
        return oracle_length(start[:, :2], goal[:, :2], self.layout)

    def oracle_action(self, goal: Tensor, cap: float) -> Tensor:
        """First action (B, 2) px, norm <= `cap`, of the quickest way past the guard.

        Every way that waits here for up to a period and then walks straight through one of
        `_PARTS` is played forward in (position, phase). That walking slower or waiting elsewhere
        gains nothing is tested against dynamic programming on a grid.
        """
        state, parts, n = self.position, len(_PARTS), len(self.position)
        here, there = (s[:, None, :2].expand(-1, parts, -1).flatten(0, 1) for s in (state, goal))
        offset, half = _PARTS.repeat(n, 1).unbind(1)
        pairs = self.layout.pairs().repeat_interleave(parts, 0)
        rooms, walk = Layout(pairs[:, 0], pairs[:, 1] + offset), [here]
        for _ in range(_HORIZON):
            walk.append(walk[-1] + oracle_action(walk[-1], there, rooms, cap, DOOR_HALF - half))
        walk = torch.stack(walk, 1).unflatten(0, (n, parts))  # (B, P, S+1, 2)
        near = (walk - goal[:, None, None, :2]).norm(dim=-1) < self.radius
        arrival = torch.where(near.any(-1), near.int().argmax(-1), _HORIZON)  # (B, P)
        # Only the passage counts, `_PASSAGE` steps from where the guard may touch the dot.
        close = (walk[..., 0] - self.layout.wall_x[:, None, None]).abs() < CONTACT + cap
        steps = close.int().argmax(-1, keepdim=True) + torch.arange(_PASSAGE + 1)  # (B, P, D+1)
        steps = steps.clamp(max=_HORIZON)
        walk = walk.gather(2, steps[..., None].expand(-1, -1, -1, 2))[:, :, None]
        waits = torch.arange(_WAITS)
        clock = waits[:, None] + steps[:, :, None]  # (B, P, W, D+1)
        guard = self._guard(state[:, None, None, None], clock)
        caught = self._touches(walk[..., :-1, :], walk[..., 1:, :], guard[..., :-1], guard[..., 1:])
        still = state[:, None, :2].expand(-1, _WAITS, -1)
        guard = self._guard(state[:, None], torch.arange(_WAITS + 1))
        struck = self._touches(still, still, guard[:, :-1], guard[:, 1:])  # (B, W), in that step
        struck = torch.nn.functional.pad(struck.int().cumsum(1)[:, :-1], (1, 0)) > 0
        cost = arrival[..., None] + waits + 1000 * (caught.any(-1) | struck[:, None])
        best = cost.flatten(1).argmin(1)
        part, wait = best // _WAITS, best % _WAITS
        offset, half = _PARTS[part].unbind(1)
        through = Layout(self.layout.wall_x, self.layout.door_y + offset)
        first = oracle_action(state[:, :2], goal[:, :2], through, cap, DOOR_HALF - half)
        return torch.where(wait[:, None] > 0, 0, first)

    def heading(self, goal: Tensor, cap: float) -> Tensor:
        """The shortest way (B, 2), whatever the guard does: data show what that leads to."""
        return oracle_action(self.position[:, :2], goal[:, :2], self.layout, cap)

    def rule_action(self, goal: Tensor, cap: float) -> Tensor:
        """Wait and go (B, 2) px, norm <= `cap`, told where the guard is.

        Walk up to the opening, beyond the guard's reach; when it leaves the centre, pass through
        the other half.
        """
        layout, state = self.layout, self.position
        place = state[:, :2]
        side = torch.where(place[:, 0] < layout.wall_x, -1.0, 1.0)
        post = torch.stack((layout.wall_x + side * (CONTACT + 0.5), layout.door_y), -1)
        crossed = (place[:, 0] - layout.wall_x) * (goal[:, 0] - layout.wall_x) > 0
        under_way = (place[:, 0] - post[:, 0]) * side < -0.1
        guard, soon = self._guard(state), self._guard(state, 1)
        away = guard - layout.door_y
        leaves = ((soon - guard) * away > 0) & (away.abs() > LEAVES[0]) & (away.abs() < LEAVES[1])
        go = crossed | under_way | (leaves & ((place - post).norm(dim=-1) < 0.1))
        other = torch.where(under_way, place[:, 1] - layout.door_y, -away).sign()
        part = Layout(layout.wall_x, layout.door_y + torch.where(crossed, 0, 2.0 * other))
        walk = oracle_action(place, goal[:, :2], part, cap, DOOR_HALF - 1.0)
        return torch.where(go[:, None], walk, bound(post - place, cap))


class PatrolledDoorOne(PatrolledDoor):
    """The same world seen one frame at a time: the control that cannot know the guard's way."""

    stacked = 1
    trial_file = "patrolled_door"
