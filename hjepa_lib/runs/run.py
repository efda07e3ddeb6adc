"""Run folders: one training seed each. Nothing here deletes a run (PL8).

A stage counts once its entry in manifest.json, written last, lists its files and carries its key.
"""

from __future__ import annotations

import contextlib
import datetime
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hjepa_lib.config import Config, differences, flatten, names_world, read_config, to_dict
from hjepa_lib.files import exclusive, inside, read_json, sha256, write_atomic, write_json
from hjepa_lib.runs import machine, remote
from hjepa_lib.runs.keys import digest
from hjepa_lib.runs.log import SINKS, MetricsLog, Tracker
from hjepa_lib.runs.places import (
    RunError,
    checked,
    list_runs,
    outputs_root,
    pretrained_runs,
    repository,
)

MANIFEST = remote.MANIFEST


class Run:
    """One run folder, from `create`, `open`, `named` or `at`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reload()
        for key in ("name", "config", "stages"):
            if key not in self.manifest:
                raise RunError(f"{path / MANIFEST} is no run manifest: {key!r} is missing")
        tree = self.manifest["config"]  # an earlier version knew other trackers
        tracker = tree.get("tracker") if tree.get("tracker") in SINKS else "none"
        self.config: Config = read_config(tree | {"tracker": tracker})
        self.metrics = MetricsLog(path / "metrics.jsonl")
        self.records = self.metrics.records
        about = (self.name, self.manifest.get("created", ""), flatten(self.config))
        self.tracker = Tracker(path / "tracker", *about)

    @classmethod
    def create(cls, name: str, config: Config, root: Path | None = None) -> Run:
        """Make `root/name`; RunError if it exists. Device and precision are chosen here, once.
        Directly below the outputs root it becomes the latest."""
        root = root or outputs_root()
        path = root / checked(name)
        taken = f"run {name!r} exists already; resume it or choose another name"
        # A killed start leaves hidden files alone; what else is there is no place for a run.
        if cls.exists(name, root) or any(path.glob("[!.]*")):
            raise RunError(taken)
        if path.parent != root and (path.parent / MANIFEST).exists():
            raise RunError(f"{path.parent.name!r} is a run, so it cannot hold the run {name!r}")
        device = machine.choose_device(config.device)
        manifest = {
            "name": name,
            "created": _now(),
            "profile": config.profile,
            "seed": config.seed,
            "config": to_dict(config),
            "device": device,
            "precision": machine.choose_precision(device, config.precision),
            "versions": machine.versions(),
            "revision": machine.revision(repository()),
            **{section: {} for section in ("notes", "stages", "notebooks", "figures")},
        }
        with exclusive(path / MANIFEST):
            if (path / MANIFEST).exists():  # of two that begin at once, one has the name
                raise RunError(taken)
            write_json(path / MANIFEST, manifest)
        remote.push(path)
        if "/" not in name and root == outputs_root():
            remote.push_file(write_atomic(root / "latest", name + "\n"))
        return cls(path)

    @classmethod
    def exists(cls, name: str, root: Path | None = None) -> bool:
        """True when the run can be opened, here or from a remote outputs root."""
        path = (root or outputs_root()) / name
        return (path / MANIFEST).is_file() or remote.exists(path)

    @classmethod
    def open(cls, name: str = "", root: Path | None = None) -> Run:
        """The run `name`, the latest one for ""; RunError if there is none."""
        root = root or outputs_root()
        if not name:
            latest = root / "latest"
            remote.pull_file(latest)
            if not latest.is_file():
                raise RunError(f"there is no run in {root} yet")
            name = latest.read_text().strip()
        path = root / checked(name)
        remote.pull(path)
        if not (path / MANIFEST).is_file():
            known = ", ".join(list_runs(root)[-5:]) or "none"
            raise RunError(f"run {name!r} does not exist in {root}; the newest ones are: {known}")
        return cls(path)

    @classmethod
    def at(cls, path: Path) -> Run:
        """The run in the folder `path`, wherever that is."""
        if not (path / MANIFEST).is_file():
            raise RunError(f"{path} holds no run: {MANIFEST} is missing")
        return cls(path)

    @classmethod
    def named(cls, where: str) -> Run:
        """The run that a reader calls by its name, "latest", "pretrained", or its folder."""
        folder = pretrained_runs().get(where) or Path(where).expanduser()
        if (folder / MANIFEST).is_file():
            return cls.at(folder)
        return cls.open("" if where == "latest" else where)

    @property
    def name(self) -> str:
        return self.manifest["name"]

    @property
    def label(self) -> str:
        """What a row calls this run: its name, or that of a pretrained one."""
        return self.path.name if self.path in pretrained_runs().values() else self.name

    @property
    def device(self) -> str:
        """Where it was made, or what this machine has instead (one printed line)."""
        stored = self.manifest["device"]
        if machine.has_device(stored):
            return stored
        here = machine.choose_device("auto")
        print(f"run {self.name} was made on {stored}, which this machine lacks: {here} is used")
        return here

    @property
    def precision(self) -> str:
        """ "fp32" or "bf16"."""
        return self.manifest["precision"]

    def require(self, config: Config) -> None:
        """RunError naming the first setting in which the stored config differs from `config`."""
        for key, (stored, wanted) in differences(self.config, config).items():
            raise RunError(
                f"run {self.name!r} was made with {key}={stored!r}, not {wanted!r}; "
                "choose another run name or drop that setting"
            )

    def folder(self, name: str) -> Path:
        """`<run>/<name>/`, created if missing."""
        path = self.path / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    @contextlib.contextmanager
    def stage(
        self, name: str, folder: str = "", key: str = "", reads: tuple[str, ...] = (),
        device: str = "",
    ) -> Iterator[Path]:  # fmt: skip
        """Run a stage that writes into the folder it yields; done until one of `reads` is made
        again.

        On success the manifest lists its key, seconds (interrupted attempts included) and each file
        there that no other stage has claimed.
        """
        target = self.folder(folder or name)
        self._write(stages={name: None})
        spent, start = self.manifest.get("interrupted", {}).get(name, 0.0), time.perf_counter()
        try:
            yield target
        except BaseException:
            spent += time.perf_counter() - start
            with contextlib.suppress(OSError, ValueError):  # never hide what ended the stage
                self._write(interrupted={name: spent})
            raise
        seconds, stages = spent + time.perf_counter() - start, self.manifest["stages"]
        claimed = {item["path"] for stage in stages.values() for item in stage["files"]}
        files = []
        for path in sorted(target.rglob("*")):
            file = path.relative_to(self.path).as_posix()
            # Optimiser state lies beside a stage's files and is none of its results.
            if path.is_file() and file not in claimed and not path.match("resume*"):
                files.append({"path": file, "bytes": path.stat().st_size, "sha256": sha256(path)})
        entry = {
            "seconds": round(seconds, 3),
            "key": key,
            "finished": _now(),
            "revision": machine.revision(repository()),
            "device": device or self.manifest["device"],
            "precision": self.precision,
            "folder": folder or name,
            "files": files,
            "reads": {other: digest(stages[other]) for other in reads if other in stages},
        }
        self._write(stages={name: entry}, interrupted={name: None})

    def done(self, name: str, key: str | None = None) -> bool:
        """True when the stage is whole, has that key, and its inputs here are those it read."""
        self.reload()  # another process may have finished it
        stages = self.manifest["stages"]
        if name not in stages or key not in (None, self.key(name)):
            return False
        files = [(inside(self.path, one["path"]), one["bytes"]) for one in stages[name]["files"]]
        whole = all(path.is_file() and path.stat().st_size == size for path, size in files)
        read = stages[name].get("reads", {}).items()
        return whole and all(digest(stages[one]) == was for one, was in read if one in stages)

    def key(self, name: str) -> str:
        """The key of a stored stage; of one made before there were keys, that of its files."""
        entry = self.manifest["stages"].get(name)
        if entry is None:
            raise RunError(f"run {self.name!r} has no stage {name!r}")
        return entry.get("key") or f"files:{digest(entry)[:16]}"

    def stage_folder(self, name: str) -> Path:
        """Where the files of a stored stage are."""
        return inside(self.path, self.manifest["stages"][name]["folder"])

    def verify(self, name: str) -> dict[str, Any]:
        """The entry of a whole stage; RunError naming the first file that is not what it wrote."""
        if not self.done(name):
            raise RunError(f"stage {name!r} of run {self.name!r} is not complete")
        entry = self.manifest["stages"][name]
        for item in entry["files"]:
            if sha256(self.path / item["path"]) != item["sha256"]:
                raise RunError(f"{self.path / item['path']} differs from what stage {name!r} wrote")
        return entry

    def adopt(self, other: Run, name: str) -> None:
        """Take over a finished stage of `other` with its entry; RunError when it is damaged."""
        entry = {"from": other.label} | other.verify(name)
        self._write(stages={name: None})
        _copy(entry["files"], other.path, self.path)
        self._write(stages={name: entry})

    def export(self, folder: Path | None = None) -> Path:
        """Replace `folder` (`outputs/pretrained`, of the world `maze` `outputs/pretrained-maze`)
        by a run with the best weights alone; RunError when level 1 is not trained."""
        world = self.config.data.played
        of_world = "-" + re.sub(r"\W", "_", world) if names_world(world) else ""
        folder = folder or repository() / "outputs" / f"pretrained{of_world}"
        if not self.done("l1"):
            raise RunError(f"run {self.name!r} has no trained level 1 to export")
        building, old = (folder.with_name(f"{folder.name}.{age}.tmp") for age in ("new", "old"))
        kept: dict[str, dict[str, Any]] = {}
        shutil.rmtree(building, ignore_errors=True)
        for name in filter(self.done, ("l1", "distance", "l2")):
            entry = self.verify(name)
            files = [one for one in entry["files"] if "/last." not in one["path"]]
            _copy(files, self.path, building)
            # What it read is here as well, without the files that are left out.
            reads = {one: digest(kept[one]) for one in entry.get("reads", {}) if one in kept}
            kept[name] = entry | {"files": files, "reads": reads}
        changes = {"stages": kept, "notebooks": {}, "figures": {}}
        write_json(building / MANIFEST, self.manifest | changes)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        building.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
        return folder

    def log(self, record: dict[str, Any]) -> None:
        """Append {"stage", "step", key: value, ...} to metrics.jsonl, and tell the tracker."""
        self.metrics.log(record)
        self.tracker.log(record)

    def note(self, key: str, value: Any, section: str = "notes") -> None:
        """Store a JSON value in the notes, notebooks or figures of the manifest; None: nothing."""
        self._write(**{section: {key: value}})

    def reload(self) -> None:
        """Read the manifest again: another process (a kernel) may have written it."""
        self.manifest: dict[str, Any] = read_json(self.path / MANIFEST)

    def publish(self) -> None:
        """Upload what changed where the outputs root is remote; a machine is one writer."""
        with exclusive(self.path / MANIFEST):
            remote.push(self.path)

    def _write(self, **sections: dict[str, Any]) -> None:
        """Put entries into sections of the manifest; None takes one away."""
        # Under a lock and read again first: kernel, runner and workers write the same manifest.
        with exclusive(self.path / MANIFEST):
            self.reload()
            for section, entries in sections.items():
                merged = self.manifest.get(section, {}) | entries
                kept = {key: value for key, value in merged.items() if value is not None}
                self.manifest[section] = kept
            write_json(self.path / MANIFEST, self.manifest)
        self.publish()


def _copy(files: list[dict[str, Any]], source: Path, target: Path) -> None:
    for item in files:
        content = inside(source, item["path"]).read_bytes()
        write_atomic(inside(target, item["path"]), content)


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")
