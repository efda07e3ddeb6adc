"""A world like no other here: three channels, no square, three actions."""

import torch

from hjepa_lib.worlds import Layout, World

LOW, HIGH = torch.tensor([3.0, 3.0, 0.0]), torch.tensor([30.0, 18.0, 1.0])


class Lamp(World):
    """B dots in a box of 34 x 22 px, and a lamp each, which the third action turns."""

    frame_shape, action_size, state_size = (3, 22, 34), 3, 3
    action_cap = 6.0

    def __init__(self, layout, dynamics="slide", seed=0):
        self.layout, self.position = layout, None

    def sample_start_goal(self, generator):
        ends = torch.rand(2, self.layout.batch, 3, generator=generator)
        return tuple(LOW + (HIGH - LOW) * ends)

    def reset(self, position):
        self.position = position
        return position

    def step(self, action):
        self.position = (self.position + action).clamp(LOW, HIGH)
        return self.position

    def reached(self, state, goal):
        return (state - goal)[..., :2].abs().amax(-1) < 2

    def render(self, position=None):
        x, y, lamp = (self.position if position is None else position)[..., None, None].unbind(-3)
        row, column = torch.arange(22.0)[:, None], torch.arange(34.0)
        dot = 255 * torch.exp(-((row - y) ** 2 + (column - x) ** 2) / 4)
        return torch.stack((dot, (255 * lamp).expand_as(dot), 0 * dot), -3).byte()

    def oracle_length(self, start, goal):
        return (start - goal)[..., :2].norm(dim=-1)

    def oracle_action(self, goal, cap):
        move = (goal - self.position) * torch.tensor([1.0, 1.0, 0.0])
        return move * cap / move.norm(dim=-1, keepdim=True).clamp(min=cap)

    @classmethod
    def collect(cls, transitions, layouts, seed):
        generator, count = torch.Generator().manual_seed(seed), -(-transitions // 40)
        layout = Layout.of(torch.zeros(count, 2))
        world = cls(layout)
        states = [world.reset(world.sample_start_goal(generator)[0])]
        pushes = torch.randn(count, 40, 3, generator=generator).clamp(-3, 3)
        states += [world.step(push) for push in pushes.unbind(1)]
        return torch.stack(states, 1), pushes, layout.pairs()
