"""Distances by imagined steps: a graph of places that level 1 believes it can walk, per scene.

Nodes are the pixels that look like visited ones; an edge joins neighbours where every predictor,
told to go there or back, imagines to arrive: a leak seldom leads both ways. Dijkstra from the goal
gives the length of the way from everywhere: no distance is trained, and no layout has to be known
(the idea of ALPS, arXiv 2602.05031, with imagined instead of recorded nodes).
"""

import itertools
import math
from collections.abc import Sequence
from functools import partial

import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra
from torch import Tensor
from torch.nn.functional import pad

from hjepa_lib.models.distance import Geometry
from hjepa_lib.models.level1 import Jepa
from hjepa_lib.models.local import Scene

VISITED = -3.0  # log-odds of a node at least
ARRIVED = 0.5  # px from the neighbour at most
LEAST = 0.01  # share of a place's pixels with a way
SHORTEST = 0.01  # px of a step of the costs
NEAREST = 4  # nodes that a goal is joined to
BEND = 1.2  # times the straight line and 1 px: a longer way bends
BEYOND = 20.0  # px added to the longest way for where no way is known
NEARBY = 4  # times as far as a sub-goal should be, its ways are known
_SIDE = range(-2, 3)
HOPS = [
    (x, y)
    for x, y in itertools.product(_SIDE, _SIDE)
    if abs(x) + abs(y) in (1, 3) or abs(x * y) == 1
]  # px, 16 of them


def pixels_of(height: int, width: int) -> Tensor:
    """(P, 2): x and y of all pixels, row by row."""
    grid = torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy")
    return torch.stack(grid, -1).reshape(-1, 2).float()


def _wide(places: Tensor, hop: tuple[int, int], height: int, width: int) -> Tensor:
    """(N,) bool: of edges from these places among all pixels, which have one beside them.

    Where walls meet in a corner a predictor imagines gaps, one pixel wide.
    """
    x, y = hop
    longer = max(abs(x), abs(y))
    beside = (int(x / longer), int(-y / longer))  # rows, columns across the hop
    known = torch.zeros(height + 2, width + 2, dtype=torch.bool, device=places.device)
    row, column = places // width + 1, places % width + 1
    known[row, column] = True
    sides = [known[row + sign * beside[0], column + sign * beside[1]] for sign in (1, -1)]
    return sides[0] | sides[1]


def _beyond(fields: Tensor) -> Tensor:
    """(B,) px of where fields (B, Hpx, Wpx) know no way."""
    return fields.where(fields.isfinite(), 0).amax((1, 2)) + BEYOND


class GraphDistance(Geometry):
    """Steps at full length to the goal, along the graph of the scene; straight between latents."""

    name = "graph"
    in_steps = True

    def __init__(self, model: Jepa, cap: float) -> None:
        self.model, self.picture = model, model.encoder.picture
        self.places = self.picture.pixels
        # How far, in px, the largest action goes: a step of the costs; with momentum at the speed
        # that it keeps up. Inverse dynamics say it: a predictor's linear part is half of a sum.
        still = model.normalise_actions(torch.zeros_like(model.action_mean))
        far = model.normalise_actions(torch.eye(len(still), device=still.device) * cap) - still
        weight = model.idm.matrix(model.encoder.kept).detach()
        weight = weight.unflatten(1, (-1, 2)).sum(1)  # (A, 2)
        longest = (far @ torch.linalg.pinv(weight).T).norm(dim=-1).max()
        # Of a model that was hardly trained it may be anything.
        self.step = float(longest.clamp(SHORTEST, max(self.picture.size)))

    def begin(self, scene: Scene, goals: Tensor) -> None:
        """New episodes: scenes of B latents, goals (B, D)."""
        places = self.picture.pixels(goals).float().cpu()
        self.graphs = [self.graph(scene.pick(torch.tensor([row]))) for row in range(len(places))]
        found = map(partial(self.field, size=scene.maps.shape[1:3]), self.graphs, places)
        fields, onward = (torch.stack(part).to(goals.device) for part in zip(*found, strict=True))
        self.onward = onward
        self.take(fields)

    def take(self, fields: Tensor) -> None:
        """Ways (B, Hpx, Wpx) px to the goals of B episodes; sub-goals get theirs behind them."""
        self.fields, self.beyond = fields, _beyond(fields)
        self.aimed = fields.new_full((len(fields), 2), torch.nan)  # (B, 2) px they belong to

    def ahead(self, latents: Tensor, goals: Tensor, steps: int) -> Tensor:
        """(B, D) -> (B, D) so many steps on, where a way bends sooner, or a nearer goal (B, D)."""
        ways = self.fields[: len(latents)].flatten(1)
        pixels = pixels_of(*self.fields.shape[1:]).to(latents)
        gaps = (pixels - self.places(latents)[:, None]).norm(dim=-1)  # (B, P)
        node = gaps.where(ways.isfinite(), torch.inf).argmin(1, keepdim=True)  # (B, 1)
        left = ways.gather(1, node)
        until = left - steps * self.step
        for _ in range(math.ceil(steps * self.step)):  # a hop is 1 px or more
            onward = self.onward.gather(1, node)
            straight = left - ways.gather(1, onward) < BEND * gaps.gather(1, onward) + 1
            node = torch.where(straight & (ways.gather(1, node) > until), onward, node)
        end = self.onward.gather(1, node) == node
        return torch.where(end, goals, self._at(pixels[node[:, 0]]))

    @torch.no_grad()
    def graph(self, scene: Scene) -> tuple[Tensor, Tensor, csr_array]:
        """Of one scene: nodes (N, 2) px, their places among all pixels, lengths of edges px."""
        height, width = scene.maps.shape[1:3]
        pixels = pixels_of(height, width).to(scene.maps.device)
        latents, one = self._at(pixels), self.model.predictors
        odds = torch.stack(
            [p.visit(latents, scene.pick(scene.rows.new_zeros(len(latents)))) for p in one]
        )
        kept = torch.nonzero(odds.amin(0) > VISITED)[:, 0]
        number = kept.new_full((len(pixels),), -1)
        number[kept] = torch.arange(len(kept), device=kept.device)
        edges = []
        for hop in HOPS:
            move = pixels.new_tensor(hop)
            target = pixels[kept] + move
            inside = ((target >= 0) & (target < pixels.new_tensor([width, height]))).all(-1)
            index = (target[:, 1] * width + target[:, 0]).long().clamp(0, len(pixels) - 1)
            inside &= number[index] >= 0
            source = torch.nonzero(inside)[:, 0]
            arrived = self._walk(pixels[kept[source]], move, scene)  # (K, S, 2)
            good = ((arrived - target[source]).norm(dim=-1) < ARRIVED).all(0)
            source = source[good]
            source = source[_wide(kept[source], hop, height, width)]
            length = torch.full((len(source),), float(move.norm()))
            edges.append((length, source.cpu(), number[index[source]].cpu()))
        lengths, sources, ends = (torch.cat(part).numpy() for part in zip(*edges, strict=True))
        there = csr_array((lengths, (sources, ends)), shape=(len(kept), len(kept)))
        return pixels[kept].cpu(), kept.cpu(), there.minimum(there.T)

    def field(
        self, graph: tuple[Tensor, Tensor, csr_array], goal: Tensor, size: Sequence[int],
        limit: float = math.inf,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """(Hpx, Wpx) px from every pixel to the goal (2,) px, infinite without a way or beyond the
        limit; and (P,) the next pixel on the way, itself at the end."""
        (nodes, kept, edges), (height, width) = graph, size
        field = torch.full((height * width,), torch.inf)
        onward = torch.arange(len(field))
        if len(nodes):
            gap, near = (nodes - goal).norm(dim=-1).topk(min(NEAREST, len(nodes)), largest=False)
            ways, after = dijkstra(
                edges, indices=near.numpy(), return_predecessors=True, limit=limit
            )  # (4, N)
            ways += gap.numpy()[:, None]
            field[kept] = torch.from_numpy(ways.min(0)).float()
            after = torch.from_numpy(after[ways.argmin(0), range(len(nodes))]).long()
            onward[kept] = kept[after.clamp(min=0)].where(after >= 0, kept)
        return field.reshape(height, width), onward

    def _at(self, pixels: Tensor, move: Tensor | None = None) -> Tensor:
        """(N, 2) px -> (N, D): there, and coming with `move` px a step."""
        latents = pixels.new_zeros(len(pixels), self.model.latent_dim)
        latents[:, :2] = self.picture.latents(pixels)
        if move is not None and latents.shape[1] > 2:
            latents[:, 2:] = (move / self.picture.unit).repeat(latents.shape[1] // 2 - 1)
        return latents

    def _walk(self, pixels: Tensor, move: Tensor, scene: Scene) -> Tensor:
        """(K, N, 2) px where each predictor imagines to be after the action for `move`."""
        latents, later = self._at(pixels, move), self._at(pixels + move)
        actions = self.model.idm(latents, later, self.model.encoder.kept)
        rows = scene.pick(scene.rows.new_zeros(len(latents)))
        return torch.stack([
            self.picture.pixels(one(latents, actions, rows)) for one in self.model.predictors
        ])  # fmt: skip

    def embed(self, latents: Tensor) -> Tensor:
        """(..., D) -> (..., 3): the place in px, and -1: no field belongs to it."""
        return pad(self.places(latents), (0, 1), value=-1.0)

    def embed_goal(self, goals: Tensor) -> Tensor:
        """(B, D) of `begin` -> (B, 3), with the number of their field."""
        found = self.embed(goals)
        found[:, 2] = torch.arange(len(found), device=found.device)
        return found

    def embed_subgoal(self, latents: Tensor, level: int, steps: int) -> Tensor:
        """(B, D) some `steps` away, of level 2 and up -> (B, 3), with the number of their field:
        the way there bends as that to the goal does."""
        found = self.embed_goal(latents)
        found[:, 2] += (level - 1) * len(found)
        more = max(0, level * len(found) - len(self.fields))
        self.fields = pad(self.fields, (0, 0, 0, 0, 0, more))
        self.beyond = pad(self.beyond, (0, more))
        self.aimed = pad(self.aimed, (0, 0, 0, more), value=math.nan)
        number, limit = found[:, 2].long(), NEARBY * steps * self.step
        for row in torch.nonzero((self.aimed[number] != found[:, :2]).any(1))[:, 0].tolist():
            field, _ = self.field(
                self.graphs[row], found[row, :2].cpu(), self.fields.shape[1:], limit
            )
            self.fields[number[row]] = field
        self.aimed[number], self.beyond[number] = found[:, :2], _beyond(self.fields[number])
        return found

    def between(self, embedded: Tensor, goal: Tensor) -> Tensor:
        """(..., 3), broadcast with goal (..., 3) -> (...) steps."""
        straight = (embedded[..., :2] - goal[..., :2]).norm(dim=-1)
        number = goal[..., 2].long()
        if (number < 0).all():
            return straight / self.step
        height, width = self.fields.shape[1:]
        x, y = embedded[..., 0].clamp(0, width - 1.001), embedded[..., 1].clamp(0, height - 1.001)
        column, row = (one.nan_to_num().long() for one in (x, y))
        number = number.clamp(min=0).expand(column.shape)

        # Bilinear, from the pixels with a way alone: beside a wall the others would repel.
        way, known = torch.zeros_like(x), torch.zeros_like(x)
        for down, across in itertools.product((0, 1), (0, 1)):
            value = self.fields[number, row + down, column + across]
            weight = (1 - (x - column - across).abs()) * (1 - (y - row - down).abs())
            weight = weight.where(value.isfinite(), 0)
            way, known = way + weight * value.where(value.isfinite(), 0), known + weight
        way = torch.where(known > LEAST, way / known.clamp(min=LEAST), self.beyond[number])
        way = way.where(~straight.isnan(), torch.nan)  # a lost trial costs no number (Q1)
        return torch.where(goal[..., 2] < 0, straight, way) / self.step
