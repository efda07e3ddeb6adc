"""Run folders elsewhere: HJEPA_OUTPUTS=s3://bucket/prefix, gs://, file:///mounted/drive, ...

Each machine works in a folder of its cache. The manifest is uploaded last, with the SHA-256 of all
files: what an upload that broke off left is made again. Of two writers the second one is refused.
"""

import contextlib
import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hjepa_lib.files import (
    FileError,
    cache,
    first_line,
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
_STAYS = re.compile(r"(.*/)?\..*|resume/.*|.*\.running\.ipynb|manifest\.json")  # work in progress


class Mirror(NamedTuple):
    """A folder below a remote outputs root, as it is there."""

    url: str  # for messages
    place: str  # as fsspec's file system writes it
    system: Any  # fsspec.AbstractFileSystem

    def read(self, name: str) -> bytes | None:
        """The remote file's content; None when there is none."""
        with self._told("read", name), contextlib.suppress(FileNotFoundError):
            return self.system.cat_file(f"{self.place}/{name}")
        return None

    def write(self, name: str, content: bytes) -> None:
        """Replace the remote file."""
        with self._told("write", name):
            self.system.pipe_file(f"{self.place}/{name}", content)

    @contextlib.contextmanager
    def _told(self, doing: str, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # every store raises its own, untyped for us
            reason = first_line(error)
            if doing == "read" and isinstance(error, PermissionError):
                reason += "; without ListBucket a store says so of what is not there, too: allow it"
            raise FileError(f"cannot {doing} {self.url}/{name}: {reason}") from error


def local_root(url: str) -> Path:
    """This machine's folder for the outputs root `url`, below HJEPA_CACHE or ~/.cache/hjepa."""
    url = url.rstrip("/")
    readable = re.sub(r"[^A-Za-z0-9]+", "-", url)[:60]
    root = (cache() / f"{readable}-{sha256(url.encode())[:8]}").resolve()
    if not (root / _MARKER).is_file():
        write_atomic(root / _MARKER, url + "\n")
    return root


def mirror(folder: Path) -> Mirror | None:
    """The remote side of `folder`; None when it lies in no remote outputs root."""
    root = next((one for one in (folder, *folder.parents) if (one / _MARKER).is_file()), None)
    if root is None:
        return None
    import fsspec  # comes with torch; late, since it is slow to import

    url = (root / _MARKER).read_text().strip()
    inner = f"/{folder.relative_to(root).as_posix()}".removesuffix("/.")
    # Only a local folder wants its parents made; a bucket that is missing stays an error.
    options = {"auto_mkdir": True} if url.startswith(("file:", "local:")) else {}
    try:
        system, prefix = fsspec.url_to_fs(url, **options)
    except (ImportError, ValueError) as error:  # a missing s3fs or gcsfs, an unknown scheme
        raise FileError(f"cannot open HJEPA_OUTPUTS={url}: {error}") from error
    return Mirror(url + inner, prefix.rstrip("/") + inner, system)


def exists(folder: Path) -> bool:
    """True when the run `folder` is in the remote root."""
    other = mirror(folder)
    return other is not None and other.read(MANIFEST) is not None


def push_file(path: Path) -> Path:
    """Upload a file that belongs to no run, such as `latest`; returns `path`."""
    if other := mirror(path.parent):
        other.write(path.name, read_bytes(path))
    return path


def push_files(folder: Path) -> None:
    """Upload the files directly in `folder`, such as a study's tables."""
    for path in sorted(folder.glob("[!.]*")):
        if path.is_file():
            push_file(path)


def pull_file(path: Path) -> None:
    """Take over one such file, if there is one."""
    other = mirror(path.parent)
    if other and (content := other.read(path.name)) is not None:
        write_atomic(path, content)


def push(folder: Path) -> None:
    """Upload what changed in the run `folder`, the manifest last; without a remote root nothing."""
    other = mirror(folder)
    if other is None:
        return
    state, there = _state(folder), other.read(MANIFEST)
    if there is not None and sha256(there) not in state["known"]:
        raise FileError(
            f"another machine went on with {other.url}, so what was made here is not uploaded; "
            f"it is in {folder}: move one of the two away"
        )
    manifest = read_bytes(folder / MANIFEST)  # before the files: it lists no stage that is newer
    files = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if _STAYS.fullmatch(name) or not path.is_file():
            continue
        item, stamp = state["files"].get(name), _stamp(path)
        if item is None or item["stamp"] != stamp:
            content = read_bytes(path)
            item = {"stamp": stamp, "bytes": len(content), "sha256": sha256(content)}
            other.write(name, content)
            state["files"][name] = item
            write_json(folder / _STATE, state)  # an upload that breaks off goes on from here
        files.append({"path": name, "bytes": item["bytes"], "sha256": item["sha256"]})
    remote = json.dumps(json.loads(manifest) | {"files": files}, indent=2).encode()
    # Noted before: an upload that breaks off here must not look like another machine's.
    state["known"].append(sha256(remote))
    write_json(folder / _STATE, state)
    other.write(MANIFEST, remote)
    write_json(folder / _STATE, state | {"local": sha256(manifest), "known": [sha256(remote)]})


def pull(folder: Path) -> None:
    """Bring the local run `folder` up to date, or the remote one where this machine is ahead.

    A file that differs from its manifest is left out with a warning: its stage is incomplete.
    FileError when both sides went on.
    """
    other = mirror(folder)
    if other is None:
        return
    state, here, remote = _state(folder), folder / MANIFEST, other.read(MANIFEST)
    ahead = here.is_file() and sha256(here) != state["local"]
    seen = remote is None or sha256(remote) in state["known"]
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
        if not path.is_file() or sha256(path) != item["sha256"]:
            content = other.read(item["path"])
            if content is None or sha256(content) != item["sha256"]:
                damaged.append(item["path"])
                path.unlink(missing_ok=True)
                continue
            write_atomic(path, content)
        state["files"][item["path"]] = item | {"stamp": _stamp(path)}
    if damaged:
        warnings.warn(
            f"{len(damaged)} files of {other.url} differ from its manifest and are left out, "
            f"{damaged[0]} among them; what they belong to is made again",
            stacklevel=2,
        )
    write_json(here, tree)
    write_json(folder / _STATE, state | {"local": sha256(here), "known": [sha256(remote)]})


def _stamp(path: Path) -> list[int]:
    return [path.stat().st_size, path.stat().st_mtime_ns]


def _state(folder: Path) -> dict[str, Any]:
    """`local`: the manifest's hash here; `known`: what it may be there; `files`: what is there."""
    path = folder / _STATE
    state = read_json(path) if path.is_file() else {}
    return {"local": "", "known": [], "files": {}} | state
