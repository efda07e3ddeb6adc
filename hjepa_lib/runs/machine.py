"""The machine a run uses: allocator, threads, device, precision, and what is noted about it."""

import contextlib
import ctypes
import importlib.metadata
import platform
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import joblib

from hjepa_lib.config import ConfigError

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


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """For models so small that threads wait for each other longer than they compute."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
    """ "fp32" or "bf16": `wanted`, or for "auto" bf16 on a CPU that has instructions for it.

    Such a CPU is up to 10 times faster with it, another one slower; an H100 gains a seventh.
    """
    if wanted != "auto":
        return wanted
    own = {"avx512_bf16", "amx_bf16"} & {*_cpu_text().split()}
    return "bf16" if own and device == "cpu" else "fp32"


def _cpu_text() -> str:
    """What Linux says of the processor; "" elsewhere."""
    with contextlib.suppress(OSError):
        return Path("/proc/cpuinfo").read_text()
    return ""


def versions() -> dict[str, str]:
    """Python, packages, system, processor and cores, as text for manifest and report."""
    import torch

    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    found["system"] = f"{platform.system()} {platform.release()} {platform.machine()}"
    found["processor"] = platform.processor() or platform.machine()
    if model := re.search(r"(?m)^model name\s*: (.*)$", _cpu_text()):
        found["processor"] = model[1]
    found["cores"] = str(usable_cores())
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def revision(root: Path | None = None) -> str:
    """Git commit of the folder `root` ("-dirty" with local changes).

    Without git: what `git archive` wrote into VERSION (colab_pack.sh), else "unknown".
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
    return "unknown"


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.check_output(command, text=True, timeout=60, stderr=subprocess.PIPE).strip()
