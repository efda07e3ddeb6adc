"""Stage `pixel_data`: the transitions that all models of the pixel comparison read."""

from __future__ import annotations

from hjepa_lib.pixels.collect import acquire
from hjepa_lib.pixels.transitions import Transitions
from hjepa_lib.runs.workspace import Workspace


def load_transitions(ws: Workspace) -> Transitions:
    """All transitions of this run, collected or loaded on first use (stage `pixel_data`)."""
    if not ws.run.done("pixel_data"):
        with ws.run.stage("pixel_data", folder="pixels/data") as folder:
            data = acquire(ws.config.pixels, ws.config.seed)
            data.save(folder)
        if notes := data.meta.get("notes"):
            ws.run.note("pixel_data", notes)
    return Transitions.load(ws.run.path / "pixels/data")


def make_transitions(ws: Workspace) -> tuple[Transitions, Transitions]:
    """(train, validation), split by episode."""
    return split(ws, load_transitions(ws))


def split(ws: Workspace, data: Transitions) -> tuple[Transitions, Transitions]:
    """(train, validation) of `data` as this run cuts it."""
    return data.split(ws.config.pixels.data.validation_split, ws.config.seed)
