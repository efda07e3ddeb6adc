"""Any model of the pixel comparison by its name: with fresh weights, or from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from hjepa_lib.config import ConfigError, from_dict, to_dict
from hjepa_lib.config.pixels import DecoderConfig, PixelsConfig
from hjepa_lib.models.checkpoint import load_module, load_weights, read_meta, save_module
from hjepa_lib.models.layers import count_parameters
from hjepa_lib.pixels.models import EncoderDecoder, PixelJepa, PixelModel, VJepa2
from hjepa_lib.pixels.networks import PatchDecoder, initialise, parameter_counts, unit_size
from hjepa_lib.pixels.transitions import PixelShapes, Transitions, shapes_of
from hjepa_lib.pixels.vjepa2 import MaskedPrediction

SIZE_ROWS = 256  # transitions that set the scale of the first latents
FILES = {
    "enc_dec": "best_encoder_decoder", "enc_dec_jepa": "best_encoder_decoder", "jepa": "best_jepa",
    "stage1": "best_stage1_model", "vjepa2": "best_stage2_model",
    "random": "random_encoder", "random_vit": "random_encoder",
}  # fmt: skip
"""What the weights of a model are called, each in a folder of its own (TRAIN-5, VJ-5, VJ-11)."""
DECODER = "best_jepa_decoder"


def build_pixel_model(name: str, config: PixelsConfig, data: Any) -> Any:
    """The model `name` with fresh weights from torch's generator (MOD-13).

    `data` gives the shapes; training `Transitions` (not bare `PixelShapes`) also set the scale of
    the first latents.
    """
    shapes = shapes_of(data)
    if name in ("stage1", "vjepa2"):
        return (MaskedPrediction if name == "stage1" else VJepa2)(config, shapes)
    if name == "random_vit":  # with one seed stage 1 begins with this very encoder
        whole = VJepa2(config, shapes)
        return PixelModel(config, shapes, name, whole.encoder, whole.action).eval()
    kinds = {"enc_dec": EncoderDecoder, "enc_dec_jepa": EncoderDecoder, "jepa": PixelJepa}
    kinds["random"] = PixelModel
    if name not in kinds:
        known = ", ".join((*kinds, "random_vit", "vjepa2"))
        raise ConfigError(f"unknown model {name!r}; known: {known}")
    seed = int(torch.randint(2**31, (1,)))
    model = kinds[name](config, shapes, name)
    with torch.random.fork_rng(devices=[]):  # building drew another number of them per model
        torch.manual_seed(seed)
        initialise(model)
    if isinstance(data, Transitions):
        rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:SIZE_ROWS]
        unit_size(model.encoder, shapes.pixels(data[rows.sort().values].state))
    if isinstance(model, PixelJepa):
        model.make_target()
    return model.requires_grad_(False) if name == "random" else model


def matched_counts(config: PixelsConfig, data: Any) -> dict[str, int]:
    """Weights that the JEPA-style twin and JEPA with its decoder train to predict a frame.

    The auxiliary loss's projector is scaffolding of either and left out.
    """
    twin, jepa = (
        parameter_counts(build_pixel_model(name, config, data)) for name in ("enc_dec_jepa", "jepa")
    )
    decoder = PatchDecoder(config.decoder, config.encoder.latent_dim, shapes_of(data))
    pair = {"enc_dec_jepa": twin, "jepa + decoder": jepa | {"decoder": count_parameters(decoder)}}
    return {name: sum(parts.values()) - parts.get("regulariser", 0) for name, parts in pair.items()}


# --- files --------------------------------------------------------------------------------------
def save_model(folder: Path, model: Any, file: str = "", /, **facts: Any) -> Path:
    """Write `model` under its name of `FILES`, or as `file`; `facts` stand beside its config."""
    path = folder / (file or FILES[model.name])
    meta = {"config": to_dict(model.config), "shapes": model.shapes._asdict()}
    save_module(path, model, _kind(model.name), **meta, **facts)
    return path


def load_model(path: Path, name: str) -> Any:
    """The stored model `name` of a file or folder, frozen and in eval mode on the CPU."""

    def build(meta: dict[str, Any]) -> nn.Module:
        return build_pixel_model(
            name, from_dict(PixelsConfig, meta["config"]), PixelShapes(**meta["shapes"])
        )

    return load_module(_find(path, name), _kind(name), build)


def about_model(path: Path, name: str) -> dict[str, Any]:
    """What is written beside the stored model `name`; FileError when it is another."""
    return read_meta(_find(path, name), _kind(name))


def fill_model(path: Path, model: Any) -> None:
    """Weights of a file or folder into `model` (TRAIN-6); FileError if they do not fit."""
    about_model(path, model.name)
    load_weights(Path(f"{_find(path, model.name)}.safetensors"), model)


def save_decoder(folder: Path, decoder: PatchDecoder, base: PixelModel) -> None:
    """`base` is the frozen model that the decoder was trained on."""
    meta = {"base": base.name, "input_dim": base.latent_dim, "shapes": base.shapes._asdict()}
    meta["config"] = to_dict(decoder.config)
    save_module(folder / DECODER, decoder, "pixel decoder", **meta)


def load_decoder(folder: Path) -> PatchDecoder:
    """The state decoder, frozen and in eval mode on the CPU."""

    def build(meta: dict[str, Any]) -> PatchDecoder:
        config, shapes = from_dict(DecoderConfig, meta["config"]), PixelShapes(**meta["shapes"])
        return PatchDecoder(config, meta["input_dim"], shapes)

    return load_module(folder / DECODER, "pixel decoder", build)


def _find(path: Path, name: str) -> Path:
    """The path of a model without its suffix, from that of the folder or of the weights."""
    path = Path(path)
    return path.with_suffix("") if path.suffix == ".safetensors" else path / FILES[name]


def _kind(name: str) -> str:
    return f"pixel {name}"
