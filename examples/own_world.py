"""An own world, from data to comparison: a dot walks around a lake and slides along its shores.

python examples/own_world.py           # the profile "laptop"
python examples/own_world.py --smoke   # a few minutes; planners trained so briefly fail
"""

import sys

import pandas as pd
import torch
from torch import polar, view_as_complex, view_as_real

from hjepa_lib.runs import score, stages, workspace
from hjepa_lib.worlds import World

CENTRE, LAKE, SHORE = 32 + 32j, 12.0, 28.0  # px: the dot stays between two circles


class Lake(World):
    """B dots on a ring, as complex numbers inside; implements `hjepa_lib.worlds.World`."""

    def __init__(self, layout, dynamics="slide", seed=0):
        self.layout, self.position = layout, None

    def sample_start_goal(self, generator):
        """A start anywhere on the ring, a goal beyond the lake: (B, 2) px each."""
        turn, bend, *shares = torch.rand(4, self.layout.batch, generator=generator)
        near, far = (LAKE + 2 + (SHORE - LAKE - 4) * share for share in shares)
        start = CENTRE + polar(near, 2 * torch.pi * turn)
        goal = CENTRE + polar(far, 2 * torch.pi * turn + torch.pi + 2 * bend - 1)
        return view_as_real(start), view_as_real(goal)

    def reset(self, position):
        self.position = position
        return position

    def step(self, action):
        place = view_as_complex(self.position + action) - CENTRE
        place = place / place.abs() * place.abs().clamp(LAKE, SHORE)
        self.position = view_as_real(CENTRE + place)
        return self.position

    def render(self, position=None):
        """Frames (B, ..., 2, 65, 65) uint8: the dot, and whatever is not ring."""
        x, y = (self.position if position is None else position)[..., None, None].unbind(-3)
        pixel = torch.arange(65.0, device=x.device)
        dot = 255 * torch.exp(-((pixel - x) ** 2) / 4) * torch.exp(-((pixel[:, None] - y) ** 2) / 4)
        radius = (pixel + 1j * pixel[:, None] - CENTRE).abs()
        land = 255 * ((radius < LAKE) | (radius > SHORE))
        return torch.stack((dot.byte(), land.byte().expand_as(dot)), -3)

    def oracle_length(self, start, goal):
        return self._route(start, goal)[0]

    def oracle_action(self, goal, cap):
        move = self._route(self.position, goal)[1] - self.position
        return move * cap / move.norm(dim=-1, keepdim=True).clamp(min=cap)

    def _route(self, start, goal):
        """Length (B,) and first corner (B, 2): straight, or two tangents and the arc between."""
        one, two = view_as_complex(start) - CENTRE, view_as_complex(goal) - CENTRE
        angle = (two / one).angle()
        reach, rest = ((LAKE / place.abs()).clamp(max=1).acos() for place in (one, two))
        arc = angle.abs() - reach - rest  # along the lake; negative: the goal is in sight
        around = LAKE * (reach.tan() + rest.tan() + arc)
        corner = one / one.abs() * polar(LAKE + 0 * arc, angle.sign() * (reach + 0.1))
        length = torch.where(arc > 0, around, (two - one).abs())
        return length, view_as_real(CENTRE + torch.where(arc > 0, corner, two))


if __name__ == "__main__":
    settings = "data.source=own_world:Lake,data.dynamics=slide"
    ws = workspace.start("lake", "smoke" if "--smoke" in sys.argv else "laptop", overrides=settings)
    agent = stages.load_trained(ws)
    cases = score.cases_of(ws.config, dynamics="slide")
    table = pd.DataFrame(score.play(ws, agent, case).row for case in cases)
    table = table.sort_values("success_rate")
    print(table[["method", "cost", "n", "success_rate", "ci95", "path_efficiency"]].to_string())
