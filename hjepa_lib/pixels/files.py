"""Pixel models on disk: safetensors weights and the JSON that rebuilds the model (TRAIN-5).

best_encoder_decoder   enc_dec and enc_dec_jepa, each in a folder of its own
best_jepa              JEPA with both encoders
best_jepa_decoder      the state decoder of a frozen model
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from hjepa_lib.config import from_dict, to_dict
from hjepa_lib.config.pixels import DecoderConfig, PixelsConfig
from hjepa_lib.files import FileError, read_json, write_json
from hjepa_lib.models.checkpoint import load_weights, save_weights
from hjepa_lib.pixels.models import PixelModel, build_pixel_model
from hjepa_lib.pixels.networks import PatchDecoder
from hjepa_lib.pixels.transitions import PixelShapes

FILES = {
    "enc_dec": "best_encoder_decoder",
    "enc_dec_jepa": "best_encoder_decoder",
    "jepa": "best_jepa",
}
DECODER = "best_jepa_decoder"


def save_model(folder: Path, model: PixelModel) -> None:
    """Write the model under its name of `FILES`."""
    file = FILES[model.name]
    save_weights(folder / f"{file}.safetensors", model)
    meta = {"kind": "pixel_model", "name": model.name, "config": to_dict(model.config)}
    write_json(folder / f"{file}.json", meta | {"shapes": model.shapes._asdict()})


def load_model_file(folder: Path, name: str) -> PixelModel:
    """The stored model `name`, frozen and in eval mode on the CPU; FileError when it is another."""
    meta = read_json(folder / f"{FILES[name]}.json")
    check_meta(meta, folder / f"{FILES[name]}.json", name)
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are overwritten at once
        model = build_pixel_model(
            name, from_dict(PixelsConfig, meta["config"]), PixelShapes(**meta["shapes"])
        )
    load_weights(folder / f"{FILES[name]}.safetensors", model)
    return model.eval().requires_grad_(False)


def check_meta(meta: Any, path: Path, name: str) -> None:
    """FileError unless `meta` describes the pixel model `name`."""
    if not isinstance(meta, dict) or meta.get("kind") != "pixel_model":
        raise FileError(f"{path} does not describe a pixel model")
    if not {"config", "shapes"} <= meta.keys():
        raise FileError(f"{path} does not say its config and shapes")
    if meta.get("name") != name:
        raise FileError(f"{path} describes the model {meta.get('name')!r}, not {name!r}")


def fill_model(path: Path, model: PixelModel) -> None:
    """Weights of the file or folder `path` into `model` (TRAIN-6); FileError if they do not fit."""
    path = Path(path)
    if path.suffix != ".safetensors":
        path = path / f"{FILES[model.name]}.safetensors"
    check_meta(read_json(path.with_suffix(".json")), path.with_suffix(".json"), model.name)
    load_weights(path, model)


def save_decoder(
    folder: Path, decoder: PatchDecoder, base: str, input_dim: int, shapes: PixelShapes
) -> None:
    """`base` names the frozen model."""
    save_weights(folder / f"{DECODER}.safetensors", decoder)
    meta = {"kind": "pixel_decoder", "base": base, "config": to_dict(decoder.config)}
    meta |= {"input_dim": input_dim, "shapes": shapes._asdict()}
    write_json(folder / f"{DECODER}.json", meta)


def load_decoder_file(folder: Path) -> nn.Module:
    """The state decoder, frozen and in eval mode on the CPU."""
    meta = read_json(folder / f"{DECODER}.json")
    if not isinstance(meta, dict) or meta.get("kind") != "pixel_decoder":
        raise FileError(f"{folder / DECODER}.json does not describe a pixel decoder")
    shapes = PixelShapes(**meta["shapes"])
    decoder = PatchDecoder(from_dict(DecoderConfig, meta["config"]), meta["input_dim"], shapes)
    load_weights(folder / f"{DECODER}.safetensors", decoder)
    return decoder.eval().requires_grad_(False)
