"""Weights in `<path>.safetensors`, and `<path>.json` with the kind and what rebuilds the module.

Nothing is ever unpickled.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import Tensor, nn

from hjepa_lib import files
from hjepa_lib.config import (
    DistanceConfig,
    Level1Config,
    Level2Config,
    PolicyConfig,
    from_dict,
    to_dict,
)
from hjepa_lib.data.normaliser import Normaliser
from hjepa_lib.files import FileError, WorkbookError
from hjepa_lib.models.distance import Distance, Probe
from hjepa_lib.models.level1 import Jepa
from hjepa_lib.models.level2 import Level2
from hjepa_lib.models.local import Picture
from hjepa_lib.models.policies import GoalPolicy
from hjepa_lib.worlds.layout import SIZE

Module = TypeVar("Module", bound=nn.Module)


def save_module(path: Path, module: nn.Module, kind: str, **meta: Any) -> None:
    """Write `<path>.safetensors`, then `<path>.json` with `kind` and `meta` (JSON-able)."""
    weights = {key: value.detach().cpu().contiguous() for key, value in tensors(module).items()}
    files.write_atomic(Path(f"{path}.safetensors"), save_bytes(weights))
    files.write_json(Path(f"{path}.json"), {"kind": kind, **meta})


def load_module(
    path: Path, kind: str, build: Callable[[dict[str, Any]], Module], meta: Any = None
) -> Module:
    """The module that `build(meta)` makes, with its weights: frozen, in eval mode, on the CPU.

    FileError for a file that is missing, damaged, of another kind or config.
    """
    meta = meta or read_meta(path, kind)
    try:
        with torch.random.fork_rng(devices=[]):  # global random numbers stay as they were
            module = build(meta)
    except KeyError as error:
        raise FileError(f"{path}.json does not say {error} of its {kind}") from error
    except WorkbookError as error:
        raise FileError(f"{path}.json does not describe a {kind}: {error}") from error
    load_weights(Path(f"{path}.safetensors"), module)
    return module.eval().requires_grad_(False)


def read_meta(path: Path, kind: str) -> dict[str, Any]:
    """What `<path>.json` says; FileError unless it describes a `kind`."""
    meta = files.read_json(Path(f"{path}.json"))
    if not isinstance(meta, dict) or meta.get("kind") != kind:
        raise FileError(f"{path}.json does not describe a {kind} model")
    return meta


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, a shared one once, without the `unsaved` ones."""
    named: dict[int, tuple[str, Tensor]] = {}
    for name, value in module.state_dict(keep_vars=True).items():
        named.setdefault(id(value), (name, value))
    unsaved = getattr(module, "unsaved", ())
    return {name: value for name, value in named.values() if not name.startswith(unsaved)}


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over all stored tensors by name: equal weights, equal text."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors(module).items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def load_weights(path: Path, module: nn.Module) -> None:
    """Fill `module` from `path`; FileError when the file is damaged or made for another config."""
    with files.told(path, "a whole safetensors file"):
        weights = load_bytes(files.read_bytes(path))
    # Version 0.1 had level 2 in a module of its own, and stored what can be computed.
    weights = {name.removeprefix("rssm."): value for name, value in weights.items()}
    own = tensors(module)
    computed = dict(module.named_buffers()).keys() - own.keys()
    here, there = ({k: tuple(v.shape) for k, v in one.items()} for one in (own, weights))
    for key in sorted((here.keys() | there.keys()) - computed):
        if here.get(key) != there.get(key):
            raise FileError(
                f"{path} was made for another config: tensor {key!r} has the shape "
                f"{there.get(key)} there and {here.get(key)} here"
            )
    with torch.no_grad():
        for key, value in own.items():
            value.copy_(weights[key])


def save_level1(folder: Path, model: Jepa, name: str = "model") -> None:
    """Level 1 with its normaliser."""
    save_module(folder / name, model, "level1", **_reader(model))


def load_level1(folder: Path, name: str = "model") -> Jepa:
    """The level-1 model, its normaliser inside."""
    return load_module(folder / name, "level1", lambda meta: Jepa(*_read(meta, Level1Config)))


def save_policy(folder: Path, model: GoalPolicy) -> None:
    """The policy without a world model, with its normaliser."""
    save_module(folder / "policy", model, "policy", **_reader(model))


def load_policy(folder: Path) -> GoalPolicy:
    """The policy without a world model."""
    return load_module(
        folder / "policy", "policy", lambda meta: GoalPolicy(*_read(meta, PolicyConfig))
    )


def _reader(model: Jepa | GoalPolicy) -> dict[str, Any]:
    """What rebuilds a module that reads frames."""
    facts = {"config": to_dict(model.config), "normaliser": to_dict(model.normaliser)}
    return facts | {"image": model.frame[1:]}


def _read(meta: dict[str, Any], section: type) -> tuple[Any, Normaliser, Any]:
    normaliser = from_dict(Normaliser, meta["normaliser"])
    return from_dict(section, meta["config"]), normaliser, meta.get("image", SIZE)


def save_probe(folder: Path, probe: Probe) -> None:
    """The position probe, beside the level 1 that it reads."""
    save_module(folder / "probe", probe, "probe", shape=probe.shape)


def load_probe(folder: Path) -> Probe:
    """The position probe."""

    def build(meta: dict[str, Any]) -> Probe:
        dim, hidden, outputs = meta["shape"]
        return Probe(dim, torch.zeros(outputs), torch.ones(outputs), hidden)

    meta = None
    if not (folder / "probe.json").exists():  # a run of version 0.1 wrote the weights alone
        dim = read_meta(folder / "model", "level1")["config"]["latent_dim"]
        meta = {"shape": (dim, 256, 2)}
    return load_module(folder / "probe", "probe", build, meta)


def save_distance(folder: Path, head: Distance) -> None:
    """The temporal-distance head."""
    facts = {"config": to_dict(head.config), "latent_dim": head.latent_dim}
    save_module(folder / "distance", head, "distance", **facts)


def load_distance(folder: Path) -> Distance:
    """The temporal-distance head."""
    return load_module(
        folder / "distance", "distance",
        lambda meta: Distance(from_dict(DistanceConfig, meta["config"]), meta["latent_dim"]),
    )  # fmt: skip


class TrainedMacro(NamedTuple):
    """A trained macro level and what planning needs besides."""

    model: Level2
    reach: dict[str, float]  # typical cost of one macro step per geometry
    box: Tensor | None  # (2, macro_dim) percentile box
    level1: str = ""  # fingerprint of the level 1 that it was trained on; "" in older files


def save_level2(
    folder: Path, model: Level2, reach: dict[str, float], box: Tensor | None, name: str = "model",
    level1: str = "",
) -> None:  # fmt: skip
    """Level 2 (or 3); reach and box are what the planner needs besides."""
    save_module(
        folder / name, model, "level2",
        config=to_dict(model.config), latent_dim=model.latent_dim, action_dim=model.action_dim,
        reach=reach, box=None if box is None else box.tolist(), level1=level1,
        image=model.around and model.around.picture.size,
    )  # fmt: skip


def load_level2(folder: Path, name: str = "model") -> TrainedMacro:
    """Level 2 (or 3)."""

    def build(meta: dict[str, Any]) -> Level2:
        config = from_dict(Level2Config, meta["config"])
        image = meta.get("image")  # of a local level 1 below
        sizes = meta["latent_dim"], meta.get("action_dim", 2)
        return Level2(config, *sizes, image and Picture(image))

    model = load_module(folder / name, "level2", build)
    meta = read_meta(folder / name, "level2")
    box = None if meta["box"] is None else torch.tensor(meta["box"])
    return TrainedMacro(model, meta["reach"], box, meta.get("level1", ""))
