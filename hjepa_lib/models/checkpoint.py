"""Weights in `<path>.safetensors`, and `<path>.json` with the kind and what rebuilds the module.

Nothing is ever unpickled.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_type_hints

import torch
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import Tensor, nn

from hjepa_lib import files
from hjepa_lib.config import from_dict, to_dict
from hjepa_lib.files import FileError, WorkbookError
from hjepa_lib.models.distance import Distance, Probe
from hjepa_lib.models.level1 import Jepa
from hjepa_lib.models.level2 import Level2
from hjepa_lib.models.policies import GoalPolicy

Module = TypeVar("Module", bound=nn.Module)
Part = Jepa | GoalPolicy | Probe | Distance | Level2
_FRAMES = ("config", "normaliser", "image")
_PARTS: dict[str, tuple[type[Part], str, tuple[str, ...]]] = {
    "level1": (Jepa, "model", _FRAMES),
    "policy": (GoalPolicy, "policy", _FRAMES),
    "probe": (Probe, "probe", ("shape",)),
    "distance": (Distance, "distance", ("config", "latent_dim")),
    "level2": (Level2, "model", ("config", "latent_dim", "action_dim", "image")),
}
"""Parts of an agent by kind: module, usual file, and what its constructor is given."""
_LATER = ("action_dim", "image")  # files of version 0.1 leave them out


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
    """Parameters and persistent buffers by name, a shared one once."""
    named: dict[int, tuple[str, Tensor]] = {}
    for name, value in module.state_dict(keep_vars=True).items():
        named.setdefault(id(value), (name, value))
    return dict(named.values())


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


def save_part(folder: Path, part: Part, name: str = "", **beside: Any) -> None:
    """Write a part of an agent with what rebuilds it, and facts that stand `beside` it."""
    kind = next(kind for kind, (make, *_) in _PARTS.items() if make is type(part))
    _, file, given = _PARTS[kind]
    about = {one: to_dict(getattr(part, one)) for one in given}
    save_module(folder / (name or file), part, kind, **about, **beside)


def load_part(folder: Path, kind: str, name: str = "") -> Any:
    """What `save_part` wrote: `level1`, `policy`, `probe`, `distance` or `level2` (or 3)."""
    make, file, given = _PARTS[kind]

    def build(meta: dict[str, Any]) -> Part:
        kinds = get_type_hints(make.__init__)
        found = {one: meta[one] for one in given if one in meta or one not in _LATER}
        for one in {"config", "normaliser"} & found.keys():
            found[one] = from_dict(kinds[one], found[one])
        return make(**found)

    meta = None
    if kind == "probe" and not (folder / "probe.json").exists():
        # A run of version 0.1 wrote the weights alone.
        dim = read_meta(folder / "model", "level1")["config"]["latent_dim"]
        meta = {"shape": (dim, 256, 2)}
    return load_module(folder / (name or file), kind, build, meta)


class TrainedMacro(NamedTuple):
    """A trained macro level and what planning needs besides."""

    model: Level2
    reach: dict[str, float]  # typical cost of one macro step per geometry
    box: Tensor | None  # (2, macro_dim) percentile box
    level1: str = ""  # fingerprint of the level 1 that it was trained on; "" in older files

    def save(self, folder: Path) -> None:
        """As `load_macro` reads it."""
        box = None if self.box is None else self.box.tolist()
        save_part(folder, self.model, reach=self.reach, box=box, level1=self.level1)


def load_macro(folder: Path) -> TrainedMacro:
    """Level 2 or 3."""
    model, meta = load_part(folder, "level2"), read_meta(folder / "model", "level2")
    box = None if meta["box"] is None else torch.tensor(meta["box"])
    return TrainedMacro(model, meta["reach"], box, meta.get("level1", ""))
