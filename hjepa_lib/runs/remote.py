"""Run folders elsewhere: HJEPA_OUTPUTS=s3://bucket/prefix, gs://, file:///mounted/drive, ...

Each machine works in a local folder of its cache. `push` uploads what changed, files first and the
manifest last, where it lists every file with size and SHA-256; `pull` gives a file its name only
after checking both. So an upload that broke off is in no manifest, and its stage is made again. A
run has one writer at a time: when two machines went on with it, the second one is refused.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from hjepa_lib.files import (
    FileError,
    inside,
    read_bytes,
    read_json,
    sha256,
    write_atomic,
    write_json,
)

MANIFEST = "manifest.json"
_MARKER = ".hjepa-remote"  # in the local folder of an outputs root: its URL
_STATE = ".remote.json"  # in a run's local folder: what it and the remote copy held last time
_WORK = ("resume/", ".running.ipynb")  # optimiser state and notebooks at work stay here


class Mirror(NamedTuple):
    """A path below a remote outputs root: here and there."""

    here: Path
    there: str  # as fsspec's file system writes it
    url: str  # for messages
    system: Any  # fsspec.AbstractFileSystem

    def read(self, name: str = "") -> bytes | None:
        """The remote file's content; None when there is none."""
        with self._failing("read", name):
            try:
                return self.system.cat_file(f"{self.there}/{name}" if name else self.there)
            except FileNotFoundError:
                return None

    def write(self, content: bytes, name: str = "") -> None:
        """Replace the remote file."""
        target = f"{self.there}/{name}" if name else self.there
        with self._failing("write", name):
            self.system.pipe_file(target, content)

    @contextlib.contextmanager
    def _failing(self, action: str, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # every store raises its own, untyped for us
            reason = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
            where = f"{self.url}/{name}" if name else self.url
            if isinstance(error, PermissionError) and action == "read":
                reason += "; without ListBucket a store says so of what is not there, too: allow it"
            raise FileError(f"cannot {action} {where}: {reason}") from error


def is_remote(place: str) -> bool:
    """True for a URL such as s3://bucket/prefix."""
    return bool(re.match(r"[a-z][a-z0-9+.-]*://", place))


def local_root(url: str) -> Path:
    """This machine's folder for the outputs root `url`, below HJEPA_CACHE or ~/.cache/hjepa."""
    url = url.rstrip("/")
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    base = Path(os.environ.get("HJEPA_CACHE") or Path(cache) / "hjepa")
    readable = re.sub(r"[^A-Za-z0-9]+", "-", url)[:60]
    root = (base / f"{readable}-{sha256(url.encode())[:8]}").expanduser().resolve()
    if not (root / _MARKER).is_file():
        write_atomic(root / _MARKER, url + "\n")
    return root


def mirror(path: Path) -> Mirror | None:
    """The remote side of `path`; None when it lies in no remote outputs root."""
    root = next((one for one in (path, *path.parents) if (one / _MARKER).is_file()), None)
    if root is None:
        return None
    import fsspec  # comes with torch; late, since it is slow to import

    url = (root / _MARKER).read_text().strip()
    # Only a local folder wants its parents made; a bucket that is missing stays an error.
    options = {"auto_mkdir": True} if url.startswith(("file:", "local:")) else {}
    try:
        system, prefix = fsspec.url_to_fs(url, **options)
    except (ImportError, ValueError) as error:  # a missing s3fs or gcsfs, an unknown scheme
        raise FileError(f"cannot open HJEPA_OUTPUTS={url}: {error}") from error
    inner = path.relative_to(root).as_posix()
    return Mirror(path, f"{prefix.rstrip('/')}/{inner}", f"{url}/{inner}", system)


def exists(folder: Path) -> bool:
    """True when the run `folder` is in the remote root."""
    other = mirror(folder)
    return other is not None and other.read(MANIFEST) is not None


def push_file(path: Path) -> Path:
    """Upload one file that belongs to no run, such as `latest` or a table; returns `path`."""
    other = mirror(path)
    if other is not None:
        other.write(read_bytes(path))
    return path


def push_files(folder: Path) -> None:
    """Upload the files that lie directly in `folder`, such as a study's tables."""
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.startswith("."):
            push_file(path)


def pull_file(path: Path) -> None:
    """Take over one such file, if there is one."""
    other = mirror(path)
    content = None if other is None else other.read()
    if content is not None:
        write_atomic(path, content)


def push(folder: Path) -> None:
    """Upload what changed in the run `folder`, the manifest last; nothing without a remote root."""
    other = mirror(folder)
    if other is None:
        return
    state = _state(folder)
    there = other.read(MANIFEST)
    if there is not None and sha256(there) not in (state["remote"], state["pending"]):
        raise FileError(
            f"another machine went on with {other.url}, so what was made here is not uploaded; "
            f"it is in {folder}: move one of the two away"
        )
    manifest = read_bytes(folder / MANIFEST)  # before the files: it lists no stage that is newer
    files = []
    for name, path in _listing(folder):
        known = state["files"].get(name)
        stamp = [path.stat().st_size, path.stat().st_mtime_ns]
        if known is None or known["stamp"] != stamp:
            content = read_bytes(path)
            known = {"stamp": stamp, "bytes": len(content), "sha256": sha256(content)}
            other.write(content, name)
            state["files"][name] = known
            write_json(folder / _STATE, state)
        files.append({"path": name, "bytes": known["bytes"], "sha256": known["sha256"]})
    remote = json.dumps(json.loads(manifest) | {"files": files}, indent=2).encode()
    # Noted before: an upload that breaks off here must not look like another machine's.
    write_json(folder / _STATE, state | {"pending": sha256(remote)})
    other.write(remote, MANIFEST)
    state |= {"local": sha256(manifest), "remote": sha256(remote), "pending": ""}
    write_json(folder / _STATE, state)


def pull(folder: Path) -> None:
    """Bring the local run `folder` up to date, or the remote one where this machine is ahead.

    A file that differs from its manifest is left out with a warning, so that its stage counts as
    incomplete. FileError when both sides went on.
    """
    other = mirror(folder)
    if other is None:
        return
    state, here, remote = _state(folder), folder / MANIFEST, other.read(MANIFEST)
    ahead = here.is_file() and sha256(here) != state["local"]
    seen = remote is not None and sha256(remote) in (state["remote"], state["pending"])
    if remote is None or (seen and here.is_file()):
        if ahead:  # an upload failed
            push(folder)
        return
    if ahead:
        raise FileError(
            f"{other.url} and its local copy {folder} both went on since they last agreed; "
            "move the one away that you do not want"
        )
    try:
        tree = json.loads(remote)
        files = [(inside(folder, item["path"]), item) for item in tree.pop("files")]
    except (ValueError, KeyError, TypeError) as error:
        raise FileError(f"{other.url}/{MANIFEST} is no manifest of a remote run") from error
    damaged = []
    for path, item in files:
        if not _fetch(other, path, item):
            damaged.append(item["path"])
            continue
        stamp = [path.stat().st_size, path.stat().st_mtime_ns]
        state["files"][item["path"]] = {"stamp": stamp} | {key: item[key] for key in _SUMS}
    if damaged:
        warnings.warn(
            f"{len(damaged)} files of {other.url} differ from its manifest and are left out, "
            f"{damaged[0]} among them; what they belong to is made again",
            stacklevel=2,
        )
    write_json(here, tree)
    agreed = {"local": sha256(here), "remote": sha256(remote), "pending": ""}
    write_json(folder / _STATE, state | agreed)


_SUMS = ("bytes", "sha256")


def _fetch(other: Mirror, path: Path, item: dict[str, Any]) -> bool:
    """Have `path` as its manifest describes it; False, and no such file, when that is not to be."""
    wanted = tuple(item[key] for key in _SUMS)
    if path.is_file() and (path.stat().st_size, sha256(path)) == wanted:
        return True
    content = other.read(item["path"])
    if content is None or (len(content), sha256(content)) != wanted:
        path.unlink(missing_ok=True)
        return False
    write_atomic(path, content)
    return True


def _state(folder: Path) -> dict[str, Any]:
    path = folder / _STATE
    empty = {"local": "", "remote": "", "pending": "", "files": {}}
    return empty | (read_json(path) if path.is_file() else {})


def _listing(folder: Path) -> list[tuple[str, Path]]:
    """(relative name, path) of every file that travels, in the order of the names."""
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    named = [(path.relative_to(folder).as_posix(), path) for path in found]
    return [
        (name, path)
        for name, path in named
        if name != MANIFEST
        and not name.startswith(_WORK[0])
        and not name.endswith(_WORK[1])
        and not any(part.startswith(".") for part in PurePosixPath(name).parts)
    ]
