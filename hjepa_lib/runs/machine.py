"""The machine a run uses: allocator, threads, device, precision, and what is noted about it."""

import contextlib
import ctypes
import importlib.metadata
import json
import platform
import re
import subprocess
import time
from pathlib import Path

import joblib

from hjepa_lib.config import ConfigError

_CLEARLY_FASTER = 1.2  # bf16 must win by this factor, so that noise cannot choose it
_PACKAGES = ("torch", "numpy", "scipy", "pandas", "gymnasium", "scikit-learn", "hjepa-lib")
usable_cores = joblib.cpu_count  # affinity mask and container quota, whichever is smaller


def set_up(threads: int | None = None) -> int:
    """Tune allocator and threads of this process; returns the number of threads.

    None: torch's own choice, lowered to the cores of a container: more are much slower.
    """
    import torch

    # glibc serves large blocks from the heap and never trims it: activations that are mapped and
    # unmapped for every update cost page faults. macOS, musl and Windows have no mallopt.
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt, keep = ctypes.CDLL(None).mallopt, 1 << 30  # bytes
        mallopt(-1, keep)  # M_TRIM_THRESHOLD
        # Older glibc refuses an M_MMAP_THRESHOLD above 32 MB: M_MMAP_MAX 0 has the same effect.
        _ = mallopt(-3, keep) or mallopt(-4, 0)
    torch.set_num_threads(threads or min(torch.get_num_threads(), usable_cores()))
    return torch.get_num_threads()


def has_device(name: str) -> bool:
    """True when this machine has a device of that kind: cpu, cuda or mps."""
    import torch

    present = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    return name == "cpu" or (name in present and present[name]())


def choose_device(name: str = "auto") -> str:
    """`name`, or for "auto" the first of cuda, mps, cpu that works; ConfigError if it is absent."""
    if name == "auto":
        return next(filter(has_device, ("cuda", "mps", "cpu")))
    if not has_device(name):
        raise ConfigError(f"device {name!r} is not available on this machine")
    return name


def choose_precision(device: str, wanted: str = "auto") -> str:
    """ "fp32" or "bf16": `wanted`, or for "auto" the faster one, measured in about a second.

    bf16 is 10 times faster on one CPU and slower on the next.
    """
    import torch

    if wanted != "auto":
        return wanted
    if device == "mps" or (device == "cuda" and not torch.cuda.is_bf16_supported()):
        return "fp32"
    return "bf16" if bf16_speedup(device) > _CLEARLY_FASTER else "fp32"


def bf16_speedup(device: str, seconds: float = 1.0) -> float:
    """fp32 time / bf16 time of a small training step on one thread.

    Both in turns, the fastest of each counts: a busy neighbour changes little.
    """
    import torch
    from torch import nn
    from torch.utils.benchmark import Timer

    batch = 64 if device == "cpu" else 4096  # on a GPU, less would time the launches
    with torch.random.fork_rng(devices=[]):
        frames = torch.rand(batch, 2, 65, 65)  # (B, C, Hpx, Wpx)
        sizes = ((2, 7, 4), (64, 3, 2), (64, 3, 2))
        layers = [nn.Conv2d(size, 64, kernel, stride) for size, kernel, stride in sizes]
        layers += [nn.Flatten(), *(nn.Linear(size, 256) for size in (576, *[256] * 8))]
        model = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))
    model.to(device, memory_format=torch.channels_last)
    frames = frames.to(device, memory_format=torch.channels_last)
    # One thread; it waits for the GPU.
    timer = Timer("model(frames).float().square().mean().backward()", globals=locals())
    times: dict[bool, list[float]] = {False: [], True: []}
    end = time.perf_counter() + seconds
    while len(times[True]) < 2 or time.perf_counter() < end:
        for bf16 in times:
            with torch.autocast(device, dtype=torch.bfloat16, enabled=bf16):
                times[bf16].append(timer.timeit(1).mean)
    return min(times[False]) / min(times[True])


def versions() -> dict[str, str]:
    """Python, packages, system, processor and cores, as text for manifest and report."""
    import torch

    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    found["system"] = f"{platform.system()} {platform.release()} {platform.machine()}"
    found["processor"] = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, IndexError):  # where there is /proc, it says more
        text = Path("/proc/cpuinfo").read_text()
        found["processor"] = re.findall(r"(?m)^model name\s*: (.*)$", text)[0]
    found["cores"] = str(usable_cores())
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def revision(root: Path | None = None) -> str:
    """Git commit of the folder `root` ("-dirty" with local changes).

    Without git: what `git archive` wrote into VERSION (colab_pack.sh), else the commit that pip
    installed from a URL (PEP 610), else "unknown".
    """
    root = root or Path(__file__).resolve().parents[2]
    if (root / ".git").exists():
        # The filter that strips notebooks would start a Python for each one; committed ones are
        # stripped. The gallery is written by the very study that asks: it changes no result.
        status = ("status", "--porcelain", "--", ".", ":!outputs/gallery")
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            changed = _git(root, "-c", "filter.nbstripout.clean=cat", *status)
            return _git(root, "rev-parse", "HEAD") + ("-dirty" if changed else "")
    with contextlib.suppress(OSError):
        text = (root / "VERSION").read_text().strip()
        if text and not text.startswith("$"):  # in a checkout nobody has filled it in
            return text
    with contextlib.suppress(importlib.metadata.PackageNotFoundError, ValueError, AttributeError):
        text = importlib.metadata.distribution("hjepa-lib").read_text("direct_url.json") or "{}"
        return json.loads(text).get("vcs_info", {}).get("commit_id") or "unknown"
    return "unknown"


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.check_output(command, text=True, timeout=60, stderr=subprocess.PIPE).strip()
