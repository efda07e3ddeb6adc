"""The stages of the pixel comparison in one table, and what loads their results for a reader."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch

from hjepa_lib.config import Config, ConfigError
from hjepa_lib.config.fields import names_in
from hjepa_lib.config.pixels import CollectionConfig, DecoderConfig, RewardConfig
from hjepa_lib.data.trajectories import Parts, three_parts
from hjepa_lib.files import load_npz, read_json
from hjepa_lib.pixels import models
from hjepa_lib.pixels.compare import COMPARED
from hjepa_lib.pixels.networks import PatchDecoder
from hjepa_lib.pixels.transitions import Transitions
from hjepa_lib.runs.beside import beside
from hjepa_lib.runs.keys import Stage
from hjepa_lib.runs.workspace import Workspace
from hjepa_lib.training.loop import Report

DECODED = ("jepa", "vjepa2")
"""Models without a decoder of their own."""
DATA, RESULT = "pixel_data", "result.json"


_ENCODER = ("encoder", "action_dim")
_TRAINED = (*_ENCODER, "auxiliary", "optim", "loading")
_DRAWING = (*_TRAINED, *names_in(DecoderConfig, "decoder", "source", "optim"))
_TWO_STAGES = (*_ENCODER, "vjepa2", "data.sequence")
SHAPING: dict[str, tuple[str, ...]] = {
    "data": ("environment", *names_in(CollectionConfig, "data", "sequence")),
    "enc_dec": (*_DRAWING, "enc_dec_lr"), "enc_dec_jepa": (*_DRAWING, "jepa"),
    "jepa": (*_TRAINED, "jepa"),
    "stage1": (*_ENCODER, "vjepa2.stage1"), "vjepa2": _TWO_STAGES,
    "random": _ENCODER, "random_vit": _TWO_STAGES, "decoder": ("decoder",),
    "heads": names_in(RewardConfig, "reward", "log_every", "labels"),
}  # fmt: skip
"""The settings below `pixels` that shape a stage, besides those of what it reads."""


def _make(maker: str, of: tuple[Any, ...], ws: Workspace, folder: Path) -> Any:
    """`maker` is module.function: those load stages, so they are imported when called."""
    return resolve_name(f"hjepa_lib.pixels.{maker}")(ws, folder, *of)


def name_of(model: str, number: int, kind: str = "") -> str:
    """The stage of a model's training seed `number`, or of its `heads` or `decoder`."""
    return "_".join([*filter(None, [kind]), model, f"s{number}"])


def pixel_stages(config: Config) -> dict[str, Stage]:
    """Every stage of the comparison by name, in the order of TRAIN-1."""
    found: dict[str, Stage] = {}
    pixels = config.pixels
    ppo = ("ppo",) if pixels.data.method == "ppo" else ()

    def add(
        stage: str, maker: str, shaping: tuple[str, ...], *reads: str,
        of: tuple[Any, ...] = (), **more: Any,
    ) -> None:  # fmt: skip
        make, inputs = partial(_make, maker, of), tuple(found[one] for one in reads)
        settings, folder = tuple(f"pixels.{one}" for one in shaping), f"pixels/{stage}"
        more = {"recipe": 1 if stage == DATA else 2, "folder": folder} | more
        found[stage] = Stage(stage, make, settings, inputs, **more)

    def given(weights: str) -> tuple[str, ...]:
        """A file of weights, or a folder, and what is written beside it."""
        return (weights, str(Path(weights).with_suffix(".json"))) if weights else ()

    recorded = (pixels.data.path,) if pixels.data.path else ()
    add(DATA, "makers.make_data", (*SHAPING["data"], *ppo), recorded=True, files=recorded)
    for n in range(pixels.seeds):
        for name in COMPARED:
            maker, reads, weights = "makers.make_model", [DATA], ""
            if "loading" in SHAPING[name]:
                weights = pixels.loading.path
            elif name == "vjepa2":
                maker = "makers.make_stage2"
                reads.append(name_of("vjepa2_stage1", n))
                add(reads[1], "makers.make_stage1", SHAPING["stage1"], DATA, of=("stage1", n),
                    files=given(pixels.vjepa2.stage1.checkpoint))  # fmt: skip
            add(name_of(name, n), maker, SHAPING[name], *reads, of=(name, n), files=given(weights))
        for kind, names, recipe in (("heads", COMPARED, 3), ("decoder", DECODED, 2)):
            for name in names:
                add(name_of(name, n, kind), f"makers.make_{kind}", SHAPING[kind], DATA,
                    name_of(name, n), of=(name, n), recipe=recipe)  # fmt: skip
    heads = [name for name in found if not name.startswith("decoder")]
    add("rewards", "results.make_rewards", (), *heads, recipe=3)
    add("comparison", "results.make_comparison", (), *found, recipe=6)
    return found


def stage_of(ws: Workspace, name: str) -> Stage:
    """The stage of this name; ConfigError for one that the settings do not have."""
    stages = pixel_stages(ws.config)
    if name not in stages:
        raise ConfigError(f"the pixel comparison has no stage {name!r} with these settings")
    return stages[name]


def train(ws: Workspace, *names: str) -> Iterator[Report]:
    """Make stages here, side by side where that helps; without names all of them."""
    return beside(ws, [stage_of(ws, name) for name in names or pixel_stages(ws.config)])


def find(ws: Workspace, name: str) -> Path:
    """Folder of the finished stage, see `Workspace.obtain`."""
    return ws.obtain(stage_of(ws, name))


def load_transitions(ws: Workspace) -> Transitions:
    """All transitions of this run, collected or loaded on first use."""
    return Transitions.load(find(ws, DATA))


def make_transitions(ws: Workspace) -> Parts:
    """The parts of the data (train, choice, test)."""
    share = ws.config.pixels.data.validation_split
    return three_parts(load_transitions(ws), share, ws.config.seed)


def fresh_model(ws: Workspace, name: str, number: int, data: Any) -> Any:
    """Model `name` as training seed number `number` begins with it."""
    torch.manual_seed(ws.config.seed + number)  # before any weight is drawn (EB5)
    return models.build_pixel_model(name, ws.config.pixels, data).to(ws.device)


def load_model(ws: Workspace, name: str, number: int) -> Any:
    """The model with its best weights, frozen, in eval mode, on the run's device."""
    return models.load_model(find(ws, name_of(name, number)), name).to(ws.device)


def load_decoder(ws: Workspace, name: str, number: int) -> PatchDecoder:
    """The frozen decoder (B, D) -> (B, C, H, W) of a model's latents."""
    return models.load_model(find(ws, name_of(name, number, "decoder")), "decoder").to(ws.device)


def load_heads(ws: Workspace, name: str, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a model's reward heads predict for held-out transitions, and their scores."""
    folder = find(ws, name_of(name, number, "heads"))
    return load_npz(folder / "predictions.npz"), read_json(folder / "scores.json")


def load_result(ws: Workspace, name: str) -> dict[str, Any]:
    """What the training `name` says of itself; `seconds` is its wall time, both stages' added."""
    found = read_json(find(ws, name) / RESULT)
    own = ws.run.manifest["stages"][name]["seconds"]
    return found | {"seconds": own + found.get("earlier_seconds", 0.0)}
