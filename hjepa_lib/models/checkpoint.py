"""Weights as safetensors, everything else as JSON beside them: nothing is ever unpickled.

`<name>.safetensors` holds parameters and buffers (a shared tensor once), `<name>.json` the config
that rebuilds the module and whatever else its user needs (normaliser, reach). Loading builds the
model from its own JSON, so no training code is involved (EB7), and a file that belongs to another
config is refused by name and shape.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import Tensor, nn

from hjepa_lib.config import DistanceConfig, Level1Config, Level2Config, from_dict, to_dict
from hjepa_lib.data.normaliser import Normaliser
from hjepa_lib.files import FileError, read_bytes, read_json, write_atomic, write_json
from hjepa_lib.models.distance import Distance
from hjepa_lib.models.joint import Level2
from hjepa_lib.models.level1 import Jepa


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; a tensor shared by two submodules appears once.

    A frozen random inverse-dynamics head taught the encoder and is of no use later: left out (PL1).
    """
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    if getattr(getattr(module, "config", None), "idm_frozen", False):
        named = {key: value for key, value in named.items() if not key.startswith("idm.")}
    return named


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over all parameters and buffers by name: equal weights, equal text."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors(module).items()):
        digest.update(name.encode())
        digest.update(
            value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()


def save_weights(path: Path, module: nn.Module) -> None:
    """Write `path` (.safetensors) atomically."""
    weights = {key: value.detach().cpu().contiguous() for key, value in tensors(module).items()}
    write_atomic(path, save_bytes(weights))


def load_weights(path: Path, module: nn.Module) -> None:
    """Fill `module` from `path`; FileError when the file is damaged or made for another config."""
    try:
        weights = load_bytes(read_bytes(path))
    except FileError:
        raise
    except Exception as error:  # safetensors raises its own untyped errors
        raise FileError(f"{path} is not a whole safetensors file: {error}") from error
    own = tensors(module)
    if weights.keys() != own.keys():
        odd = sorted(weights.keys() ^ own.keys())[0]
        raise FileError(f"{path} was made for another config: tensor {odd!r} does not match")
    for key, value in own.items():
        if value.shape != weights[key].shape:
            raise FileError(
                f"{path} was made for another config: {key} is {tuple(weights[key].shape)} there "
                f"and {tuple(value.shape)} here"
            )
    with torch.no_grad():
        for key, value in own.items():
            value.copy_(weights[key])


def save_level1(folder: Path, model: Jepa, normaliser: Normaliser, name: str = "model") -> None:
    """`<name>.safetensors` and `<name>.json` of a level-1 model."""
    save_weights(folder / f"{name}.safetensors", model)
    meta = {"kind": "level1", "config": to_dict(model.config), "normaliser": normaliser.to_dict()}
    write_json(folder / f"{name}.json", meta)


def load_level1(folder: Path, name: str = "model") -> tuple[Jepa, Normaliser]:
    """The level-1 model and its normaliser, in eval mode on the CPU."""
    meta = _meta(folder / f"{name}.json", "level1")
    normaliser = Normaliser.from_dict(meta["normaliser"])
    model = Jepa(from_dict(Level1Config, meta["config"]), normaliser)
    load_weights(folder / f"{name}.safetensors", model)
    return model.eval(), normaliser


def save_distance(folder: Path, head: Distance, latent_dim: int) -> None:
    """`distance.safetensors` and `distance.json`."""
    save_weights(folder / "distance.safetensors", head)
    meta = {"kind": "distance", "config": to_dict(head.config), "latent_dim": latent_dim}
    write_json(folder / "distance.json", meta)


def load_distance(folder: Path) -> Distance:
    """The temporal-distance head, in eval mode on the CPU."""
    meta = _meta(folder / "distance.json", "distance")
    head = Distance(from_dict(DistanceConfig, meta["config"]), meta["latent_dim"])
    load_weights(folder / "distance.safetensors", head)
    return head.eval()


def save_level2(
    folder: Path, model: Level2, latent_dim: int, reach: dict[str, float], box: Tensor | None
) -> None:
    """`model.safetensors` and `model.json`; reach and box are what the planner needs besides."""
    save_weights(folder / "model.safetensors", model)
    meta = {
        "kind": "level2",
        "config": to_dict(model.config),
        "latent_dim": latent_dim,
        "reach": reach,
        "box": None if box is None else box.tolist(),
    }
    write_json(folder / "model.json", meta)


class TrainedMacro(NamedTuple):
    """A trained macro level and what planning needs besides."""

    model: Level2
    reach: dict[str, float]  # typical cost of one macro step per geometry
    box: Tensor | None  # (2, macro_dim) percentile box


def load_level2(folder: Path) -> TrainedMacro:
    """Level 2 (or 3), in eval mode on the CPU."""
    meta = _meta(folder / "model.json", "level2")
    model = Level2(from_dict(Level2Config, meta["config"]), meta["latent_dim"])
    load_weights(folder / "model.safetensors", model)
    box = None if meta["box"] is None else torch.tensor(meta["box"])
    return TrainedMacro(model.eval(), meta["reach"], box)


def _meta(path: Path, kind: str) -> dict[str, Any]:
    meta = read_json(path)
    if not isinstance(meta, dict) or meta.get("kind") != kind:
        raise FileError(f"{path} does not describe a {kind} model")
    return meta
