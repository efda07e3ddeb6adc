"""Small GIFs of executed episodes, one or several side by side: a frame per state, goal red.

Frames share one fixed palette and Pillow stores only what changed; the step counter makes every
frame different, as Pillow would merge equal neighbours and the episode would lose its time.
"""

from __future__ import annotations

import base64
import functools
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from hjepa_lib.figures import style
from hjepa_lib.figures.style import FigureError, checked
from hjepa_lib.files import read_bytes, write_atomic

FPS = 10
LIMIT_BYTES = 300_000
GAP, LINE = 10, 20  # screen pixels between panels, and height of a line of text


class Clip(NamedTuple):
    """One panel: an executed episode over its room, in px of the room's picture."""

    positions: np.ndarray  # (S+1, 2)
    goal: np.ndarray  # (2,)
    room: np.ndarray  # (Hpx, Wpx), walls bright (`data.room_of`)
    title: str = ""
    colour: str = style.BLUE
    subgoals: np.ndarray | None = None  # (S+1, 2) where level 1 is sent at each step


def clip_of(arrays: Mapping[str, np.ndarray], trial: int, room: np.ndarray, title: str) -> Clip:
    """One trial of a result's arrays, with the sub-goals that were not the goal itself."""
    positions, aims = arrays["positions"][trial], arrays.get("plan_subgoal_xy")
    if aims is not None:  # (n, calls, 2)
        aims = np.where(arrays["plan_near"][trial][:, None] > 0, np.nan, aims[trial])
        aims = aims.repeat(-(-(len(positions) - 1) // len(aims)), axis=0)
    return Clip(positions, arrays["goal"][trial], room, title, style.colour(title), aims)


class HtmlImage(str):
    """An <img> element that notebooks show as a picture."""

    def _repr_html_(self) -> str:
        return str(self)


def comparison_gif(path: str | Path, clips: Sequence[Clip], scale: int = 4) -> Path:
    """Write several episodes side by side in step, `scale` screen pixels per px of the world.

    A shorter episode waits at its end. The scale is lowered until the file fits 300 KB (PL14).
    Raises `FigureError` for wrong shapes or when even scale 1 is too large (about 2,000 steps).
    """
    if not clips or scale < 1:
        raise FigureError("a GIF needs at least one clip and a scale of 1 or more")
    palette = _palette([clip.colour for clip in clips])
    for size in range(scale, 0, -1):
        indexed = [
            frame.quantize(palette=palette, dither=Image.Dither.NONE)
            for frame in _frames(clips, size)
        ]
        buffer = io.BytesIO()
        rest = {"save_all": True, "append_images": indexed[1:], "loop": 0}
        indexed[0].save(buffer, "GIF", duration=1000 // FPS, **rest)
        if buffer.tell() <= LIMIT_BYTES:
            return write_atomic(path, buffer.getvalue())
    raise FigureError(f"{path} would exceed {LIMIT_BYTES} bytes at any scale; show fewer steps")


def gif_html(path: str | Path, alt: str) -> HtmlImage:
    """The GIF as an <img> with a data URI; `alt` says in words what moves."""
    code = base64.b64encode(read_bytes(path)).decode()
    return HtmlImage(f'<img src="data:image/gif;base64,{code}" alt="{html.escape(alt)}">')


def _frames(clips: Sequence[Clip], scale: int) -> list[Image.Image]:
    """One RGB image per step, all clips abreast with their titles above and the step below."""
    states = max(len(clip.positions) for clip in clips)
    films = [_film(clip, scale, states) for clip in clips]
    height = max(film.shape[1] for film in films)
    lefts = np.cumsum([GAP, *(film.shape[2] + GAP for film in films)])
    canvas = Image.new("RGB", (int(lefts[-1]), height + 2 * LINE + 4), style.PAPER)
    pen, font = ImageDraw.Draw(canvas), _font()
    for left, clip, film in zip(lefts, clips, films, strict=False):
        pen.text((left, 4), _shortened(clip.title, font, film.shape[2]), style.INK, font)
    frames = []
    for step in range(states):
        frame = canvas.copy()
        for left, film in zip(lefts, films, strict=False):
            frame.paste(Image.fromarray(film[step]), (int(left), LINE + 2))
        ImageDraw.Draw(frame).text((GAP, height + LINE + 5), f"step {step}", style.INK, font)
        frames.append(frame)
    return frames


def _film(clip: Clip, scale: int, states: int) -> np.ndarray:
    """(states, scale * Hpx, scale * Wpx, 3) uint8 panels of one clip."""
    path = checked(clip.positions, "positions", None, 2).astype(np.float32)
    goal = checked(clip.goal, "goal", 2).astype(np.float32)
    walls = np.kron(np.asarray(clip.room) > 0, np.ones((scale, scale), bool))
    image = np.where(walls[..., None], _rgb(style.WALL), _rgb(style.FLOOR))
    y, x = (((np.arange(side) + 0.5) / scale - 0.5).astype(np.float32) for side in walls.shape)

    def stroke(start: np.ndarray, end: np.ndarray, radius: float) -> np.ndarray:
        """Coverage in 0..1 of every screen pixel by a stroke of `radius` px."""
        (dx, dy), across, down = end - start, x[None, :] - start[0], y[:, None] - start[1]
        share = np.clip((across * dx + down * dy) / max(dx * dx + dy * dy, 1e-12), 0, 1)
        distance = np.hypot(across - share * dx, down - share * dy)
        return np.clip((radius - distance) * scale + 0.5, 0, 1)[..., None]

    walked = np.zeros((*walls.shape, 1), dtype=np.float32)
    film = np.empty((states, *walls.shape, 3), dtype=np.uint8)
    for step in range(states):
        now, before = (path[min(max(s, 0), len(path) - 1)] for s in (step, step - 1))
        walked = np.maximum(walked, stroke(before, now, 0.35))
        layers = [(_trail(clip.colour), walked), (_rgb(style.GOAL), stroke(goal, goal, 2.0))]
        if clip.subgoals is not None:
            aim = clip.subgoals[min(step, len(clip.subgoals) - 1)].astype(np.float32)
            if np.isfinite(aim).all():
                layers += [(_rgb(style.INK), stroke(aim, aim, 1.3))]
                layers += [(_rgb(style.SUBGOAL), stroke(aim, aim, 1.0))]
        layers += [(_rgb(style.PAPER), stroke(now, now, 1.65))]
        layers += [(_rgb(clip.colour), stroke(now, now, 1.3))]
        drawn = image
        for colour, share in layers:
            drawn = drawn + share * (colour - drawn)
        film[step] = np.rint(255 * drawn)
    return film


def _rgb(colour: str) -> np.ndarray:
    return np.array(to_rgb(colour), dtype=np.float32)


def _trail(colour: str) -> np.ndarray:
    return 0.55 * _rgb(style.FLOOR) + 0.45 * _rgb(colour)


def _palette(colours: Sequence[str]) -> Image.Image:
    """Every colour that is drawn, and the blends at their edges; fixed for all frames."""
    names = (style.PAPER, style.INK, style.FLOOR, style.WALL, style.GOAL, style.SUBGOAL)
    paper, ink, floor, wall, goal, aim = map(_rgb, names)
    pairs = [(paper, ink), (paper, goal), (floor, goal), (wall, goal), (wall, paper), (ink, aim)]
    for colour in dict.fromkeys(colours):
        dot, trail = _rgb(colour), _trail(colour)
        pairs += [(floor, trail), (trail, goal), (paper, dot), (trail, paper), (wall, trail)]
    entries = [a + share * (b - a) for a, b in pairs for share in np.linspace(0, 1, 6)]
    flat = np.unique(np.rint(255 * np.array(entries)).astype(int), axis=0)[:256].ravel().tolist()
    image = Image.new("P", (1, 1))
    image.putpalette(flat)
    return image


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(findfont("DejaVu Sans"), 12)


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """`text`, cut with an ellipsis where it is wider than `width` screen pixels."""
    cut = text
    while cut and font.getlength(cut + "…" * (cut != text)) > width:
        cut = cut[:-1]
    return cut + "…" * (cut != text)
