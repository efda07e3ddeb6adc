"""Small GIFs of executed episodes, one or several side by side, drawn without ffmpeg or pyplot.

One frame per state (steps + 1), 10 frames a second, goal red, the way behind the dot pale. Frames
share one fixed palette and Pillow stores only what changed, so 201 frames stay far below the cap of
300 KB; a file above it is drawn smaller (PL14). The step counter makes every frame different, as
Pillow would merge equal neighbours and the episode would lose its time. `gif_html` embeds a file as
a data URI, because nbconvert turns a plain GIF display into text.
"""

from __future__ import annotations

import base64
import functools
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from hjepa_lib.evaluation.results import Result
from hjepa_lib.figures import style
from hjepa_lib.figures.style import FigureError, checked
from hjepa_lib.files import read_bytes, write_atomic
from hjepa_lib.worlds.layout import DOOR_HALF, HIGH, LOW, WALL_HALF

FPS = 10
LIMIT_BYTES = 300_000
MARGIN_PX = 1.0  # around the border lines, as in the figures
GAP, LINE = 10, 20  # screen pixels between panels, and height of a line of text


class Clip(NamedTuple):
    """One panel: an executed episode in its room, px, (x, y) with y down."""

    positions: np.ndarray  # (S+1, 2)
    goal: np.ndarray  # (2,)
    wall_x: float
    door_y: float
    title: str = ""
    colour: str = style.BLUE


def clip_of(result: Result, trial: int) -> Clip:
    """One trial of a stored result, ready to draw; IndexError when there is no such trial."""
    wall_x, door_y = result.arrays["layout"][trial].tolist()
    return Clip(
        result.arrays["positions"][trial],
        result.arrays["goal"][trial],
        wall_x,
        door_y,
        f"{result.header['method']}, {result.header['cost']}",
        style.method_colour(result.header["method"]),
    )


class HtmlImage(str):
    """An <img> element that notebooks show as a picture."""

    def _repr_html_(self) -> str:
        return str(self)


def episode_gif(
    path: str | Path,
    positions: np.ndarray,
    goal: np.ndarray,
    wall_x: float,
    door_y: float,
    title: str = "",
    colour: str = style.BLUE,
    scale: int = 4,
) -> Path:
    """Write the episode positions (S+1, 2) px as a GIF of S + 1 frames; returns the path."""
    return comparison_gif(path, [Clip(positions, goal, wall_x, door_y, title, colour)], scale)


def comparison_gif(path: str | Path, clips: Sequence[Clip], scale: int = 4) -> Path:
    """Write several episodes side by side in step, `scale` screen pixels per px of the world.

    A shorter episode waits at its end. The scale is lowered until the file fits 300 KB. Raises
    `FigureError` for wrong shapes or when even scale 1 is too large (about 2,000 steps).
    """
    if not clips or scale < 1:
        raise FigureError("a GIF needs at least one clip and a scale of 1 or more")
    for size in range(scale, 0, -1):
        data = _encode(_frames(clips, size), _palette([clip.colour for clip in clips]))
        if len(data) <= LIMIT_BYTES:
            return write_atomic(path, data)
    raise FigureError(f"{path} would exceed {LIMIT_BYTES} bytes at any scale; show fewer steps")


def gif_html(path: str | Path, alt: str) -> HtmlImage:
    """The GIF as an <img> with a data URI; `alt` says in words what moves."""
    code = base64.b64encode(read_bytes(path)).decode()
    return HtmlImage(f'<img src="data:image/gif;base64,{code}" alt="{html.escape(alt)}">')


def _frames(clips: Sequence[Clip], scale: int) -> list[Image.Image]:
    """One RGB image per step, all clips abreast with their titles above and the step below."""
    states = max(len(clip.positions) for clip in clips)
    films = [_film(clip, scale, states) for clip in clips]
    side = films[0].shape[1]
    size = (len(clips) * (side + GAP) + GAP, side + 2 * LINE + 4)
    canvas = Image.new("RGB", size, style.PAPER)
    pen, font = ImageDraw.Draw(canvas), _font()
    for i, clip in enumerate(clips):
        left = GAP + i * (side + GAP)
        pen.text((left, 4), _shortened(clip.title, font, side), style.INK, font)
    frames = []
    for step in range(states):
        frame = canvas.copy()
        for i, film in enumerate(films):
            frame.paste(Image.fromarray(film[step]), (GAP + i * (side + GAP), LINE + 2))
        text = f"step {step}"
        ImageDraw.Draw(frame).text((GAP, side + LINE + 5), text, style.INK, font)
        frames.append(frame)
    return frames


def _film(clip: Clip, scale: int, states: int) -> np.ndarray:
    """(states, side, side, 3) uint8 panels of one clip."""
    path = checked(clip.positions, "positions", None, 2).astype(np.float32)
    goal = checked(clip.goal, "goal", 2).astype(np.float32)
    origin = LOW - MARGIN_PX
    side = round((HIGH + MARGIN_PX - origin) * scale)
    grid = ((np.arange(side) + 0.5) / scale + origin).astype(
        np.float32
    )  # px coordinate of each screen pixel
    room = _room(grid, clip.wall_x, clip.door_y)
    colour, trail = _rgb(clip.colour), _trail_colour(clip.colour)
    walked = np.zeros((side, side), dtype=np.float32)
    film = np.empty((states, side, side, 3), dtype=np.uint8)
    for step in range(states):
        now, before = (path[min(max(s, 0), len(path) - 1)] for s in (step, step - 1))
        walked = np.maximum(walked, _covered(grid, before, now, 0.35, scale))
        image = _blend(room, trail, walked)
        image = _blend(image, _rgb(style.GOAL), _covered(grid, goal, goal, 2.0, scale))
        image = _blend(image, _rgb(style.PAPER), _covered(grid, now, now, 1.65, scale))
        image = _blend(image, colour, _covered(grid, now, now, 1.3, scale))
        film[step] = np.rint(255 * image)
    return film


def _room(grid: np.ndarray, wall_x: float, door_y: float) -> np.ndarray:
    """(side, side, 3) floor, border and wall."""
    x, y = grid[None, :], grid[:, None]
    room = (x > LOW) & (x < HIGH) & (y > LOW) & (y < HIGH)
    border = (np.maximum(abs(x - 32), abs(y - 32)) < HIGH - 32 + 0.6) & ~room
    wall = room & (abs(x - wall_x) < WALL_HALF) & (abs(y - door_y) > DOOR_HALF)
    image = np.where(room[..., None], _rgb(style.FLOOR), _rgb(style.PAPER))
    return np.where((border | wall)[..., None], _rgb(style.WALL), image)


def _covered(
    grid: np.ndarray, start: np.ndarray, end: np.ndarray, radius: float, scale: int
) -> np.ndarray:
    """(side, side) coverage in 0..1 of a stroke of `radius` px from start to end."""
    x, y = grid[None, :] - start[0], grid[:, None] - start[1]
    dx, dy = end - start
    share = np.clip((x * dx + y * dy) / max(dx * dx + dy * dy, 1e-12), 0, 1)
    distance = np.hypot(x - share * dx, y - share * dy)
    return np.clip((radius - distance) * scale + 0.5, 0, 1)


def _blend(image: np.ndarray, colour: np.ndarray, share: np.ndarray) -> np.ndarray:
    return image + share[..., None] * (colour - image)


def _rgb(colour: str) -> np.ndarray:
    return np.array(to_rgb(colour), dtype=np.float32)


def _trail_colour(colour: str) -> np.ndarray:
    return 0.55 * _rgb(style.FLOOR) + 0.45 * _rgb(colour)


def _palette(colours: Sequence[str]) -> Image.Image:
    """Every colour that is drawn, and the blends at their edges; fixed for all frames."""
    paper, ink, floor, wall, goal = map(
        _rgb, (style.PAPER, style.INK, style.FLOOR, style.WALL, style.GOAL)
    )
    pairs = [(paper, ink), (paper, goal), (floor, goal), (wall, goal), (wall, paper)]
    for colour in dict.fromkeys(colours):
        dot, trail = _rgb(colour), _trail_colour(colour)
        pairs += [(floor, trail), (trail, goal), (paper, dot), (trail, paper), (wall, trail)]
    entries = [a + share * (b - a) for a, b in pairs for share in np.linspace(0, 1, 6)]
    flat = np.unique(np.rint(255 * np.array(entries)).astype(int), axis=0)[:256].ravel().tolist()
    image = Image.new("P", (1, 1))
    image.putpalette(flat)
    return image


def _encode(frames: Sequence[Image.Image], palette: Image.Image) -> bytes:
    indexed = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    buffer = io.BytesIO()
    indexed[0].save(
        buffer, "GIF", save_all=True, append_images=indexed[1:], duration=1000 // FPS, loop=0
    )
    return buffer.getvalue()


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(findfont("DejaVu Sans"), 12)


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """`text`, cut with an ellipsis where it is wider than `width` screen pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
