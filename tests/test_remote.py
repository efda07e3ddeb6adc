"""Run folders on object storage: what travels, in which order, and what a broken upload leaves."""

import hashlib
import json
import os
import subprocess
import sys
import warnings

import fsspec
import nbformat
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from tiny import tiny_config

from hjepa_lib.__main__ import main
from hjepa_lib.files import FileError
from hjepa_lib.runs import notebooks as runner
from hjepa_lib.runs import remote, stages
from hjepa_lib.runs.places import RunError, outputs_root
from hjepa_lib.runs.run import Run
from hjepa_lib.runs.workspace import Workspace

CONFIG = tiny_config()


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Function of a name: continue on that machine, whose cache is its own; the store is shared."""
    monkeypatch.setenv("HJEPA_OUTPUTS", f"memory://{tmp_path.name}/runs")

    def move_to(name):
        monkeypatch.setenv("HJEPA_CACHE", str(tmp_path / name))

    move_to("one")
    yield move_to
    MemoryFileSystem.store.clear()


@pytest.fixture
def store(tmp_path):
    """{path below the outputs root: content} of the remote side, as it is now."""
    return lambda: {
        path.removeprefix(f"/{tmp_path.name}/runs/"): file.getvalue()
        for path, file in MemoryFileSystem.store.items()
    }


def fill(run, stage, text="x", **options):
    with run.stage(stage, **options) as folder:
        (folder / f"{stage}.txt").write_text(text)


def break_uploads(monkeypatch, after):
    """The connection is lost at upload number `after` + 1, until the patch is undone."""
    whole, left = MemoryFileSystem.pipe_file, [after]

    def pipe_file(self, path, value, **options):
        left[0] -= 1
        if left[0] < 0:
            raise OSError("connection reset\nby peer")
        return whole(self, path, value, **options)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", pipe_file)


def test_a_run_is_found_on_another_machine(machine, store):
    here = Run.create("a", CONFIG)
    assert here.path.is_relative_to(outputs_root())
    fill(here, "data", "numbers")
    machine("two")
    assert not (outputs_root() / "a").exists()
    found = Run.open()
    assert found.path != here.path
    assert found.config == CONFIG
    assert found.manifest == here.manifest
    found.verify("data")
    assert (found.path / "data/data.txt").read_text() == "numbers"
    assert Run.exists("a")
    with pytest.raises(RunError, match="'a' exists already"):
        Run.create("a", CONFIG)
    with pytest.raises(RunError, match="does not exist"):
        Run.open("b")
    assert store()["latest"] == b"a\n"


def test_manifest_is_last_and_lists_what_is_there(machine, store, monkeypatch):
    whole, order = MemoryFileSystem.pipe_file, []

    def pipe_file(self, path, value, **options):
        whole(self, path, value, **options)
        order.append(path.split("/runs/")[1])
        if path.endswith("/manifest.json"):
            for item in json.loads(value)["files"]:
                content = store()[f"a/{item['path']}"]
                assert len(content) == item["bytes"]
                assert hashlib.sha256(content).hexdigest() == item["sha256"]

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", pipe_file)
    run = Run.create("a", CONFIG)
    fill(run, "data", "one")
    fill(run, "l1", "two")
    assert order == [
        "a/manifest.json", "latest",
        "a/manifest.json", "a/data/data.txt", "a/manifest.json",
        "a/manifest.json", "a/l1/l1.txt", "a/manifest.json",
    ]  # fmt: skip
    order.clear()
    run.note("key", 1)
    assert order == ["a/manifest.json"]  # what has not changed is not sent again


def test_everything_but_work_in_progress_travels(machine, store):
    run = Run.create("a", CONFIG)
    run.log({"stage": "l1", "step": 1, "loss": 0.5})
    for name in ("figures/one.png", "notebooks/01.ipynb", "report.html"):
        (run.folder(name.rpartition("/")[0]) / name.rpartition("/")[2]).write_text(name)
    for name in ("resume/l1/state.pt", "notebooks/02.running.ipynb", ".hidden", "l1/.half.tmp"):
        (run.folder(name.rpartition("/")[0]) / name.rpartition("/")[2]).write_text("x")
    run.publish()
    names = ("manifest.json", "metrics.jsonl", "figures/one.png", "notebooks/01.ipynb")
    assert set(store()) == {"latest", "a/report.html"} | {f"a/{name}" for name in names}
    machine("two")
    assert [row["loss"] for row in Run.open("a").records("l1")] == [0.5]


def test_resume_elsewhere_gives_the_same_result(machine, trained, short_probe):
    """Data and level 1 here, the rest on a fresh machine: bit-equal to one machine's run."""
    ws = Workspace("test", Run.create("a", CONFIG))
    for _ in stages.train(ws, "l1"):
        pass
    machine("two")
    ws = Workspace("test", Run.open("a"))
    assert ws.run.done("data")
    for _ in (report for name in ("l1", "distance", "l2") for report in stages.train(ws, name)):
        pass
    machine("three")
    last, alone = Run.open("a"), Run.at(trained)
    for stage in ("data", "l1", "distance", "l2"):
        last.verify(stage)
        files = last.manifest["stages"][stage]["files"]
        assert files == alone.manifest["stages"][stage]["files"], stage
    drawn = [row for row in last.records() if row["stage"] == "l1"]
    assert drawn == [row for row in alone.records() if row["stage"] == "l1"]


def test_a_broken_upload_is_made_again(machine, monkeypatch):
    run = Run.create("a", CONFIG)
    fill(run, "data")
    with monkeypatch.context() as patch:
        break_uploads(patch, after=3)  # two manifests and one file get through
        with (
            pytest.raises(FileError, match=r"cannot write memory://.*connection reset") as caught,
            run.stage("l1") as folder,
        ):
            run.note("key", 1)
            for part in "abc":
                (folder / part).write_text(part)
    assert "\n" not in str(caught.value)
    assert run.done("l1")  # the local copy is whole
    machine("two")
    other = Run.open("a")
    assert other.done("data")
    assert not other.done("l1")
    fill(other, "l1", "again")
    machine("three")
    third = Run.open("a")
    third.verify("l1")
    assert (third.path / "l1/l1.txt").read_text() == "again"
    assert [item["path"] for item in third.manifest["stages"]["l1"]["files"]] == ["l1/l1.txt"]


def test_the_machine_that_lost_its_connection_catches_up(machine, monkeypatch):
    run = Run.create("a", CONFIG)
    with monkeypatch.context() as patch:
        break_uploads(patch, after=1)
        with pytest.raises(FileError, match="connection reset"):
            fill(run, "data")
    Run.open("a")  # uploads what is missing
    machine("two")
    Run.open("a").verify("data")


@pytest.mark.parametrize("damage", ["other", "short", "gone"])
def test_a_damaged_file_is_left_out_and_its_stage_made_again(machine, store, damage):
    run = Run.create("a", CONFIG)
    fill(run, "data", "numbers")
    fill(run, "l1", "weights", reads=("data",))
    (place,) = [path for path in MemoryFileSystem.store if path.endswith("l1/l1.txt")]
    system = fsspec.filesystem("memory")
    if damage == "gone":
        system.rm(place)
    else:
        system.pipe_file(place, {"other": b"weighty", "short": b"wei"}[damage])
    machine("two")
    with pytest.warns(UserWarning, match=r"1 files of .* l1/l1.txt among them"):
        other = Run.open("a")
    assert other.done("data")
    assert not other.done("l1")
    assert not (other.path / "l1/l1.txt").exists()
    fill(other, "l1", "weights", reads=("data",))
    assert store()["a/l1/l1.txt"] == b"weights"
    machine("three")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Run.open("a").verify("l1")


def test_an_interrupted_download_starts_over(machine, monkeypatch):
    run = Run.create("a", CONFIG)
    for part in "abc":
        fill(run, part, part)
    machine("two")
    whole, left = MemoryFileSystem.cat_file, [3]

    def cat_file(self, path, *options, **more):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return whole(self, path, *options, **more)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "cat_file", cat_file)
        with pytest.raises(KeyboardInterrupt):
            Run.open("a")
    assert not (outputs_root() / "a/manifest.json").exists()
    again = Run.open("a")
    for part in "abc":
        again.verify(part)


def test_the_newer_side_wins(machine):
    fill(Run.create("a", CONFIG), "data", "first")
    machine("two")
    fill(Run.open("a"), "data", "second")
    machine("one")
    assert (Run.open("a").path / "data/data.txt").read_text() == "second"


def test_s2_a_second_writer_never_hides_what_the_first_uploaded(machine):
    """Two machines hold one run open; the one that lags is refused, whatever it does."""
    fill(Run.create("a", CONFIG), "data")
    machine("two")
    Run.open("a")
    machine("one")
    fill(Run.at(outputs_root() / "a"), "l1", "one's")
    machine("two")
    late = Run.at(outputs_root() / "a")  # does not look at the store
    with pytest.raises(FileError, match="another machine went on with memory://") as caught:
        fill(late, "l2")
    assert "\n" not in str(caught.value)
    assert Run.open("a").done("l1")  # nothing was made here yet, so it catches up
    machine("one")
    Run.at(outputs_root() / "a").note("where", "one")
    machine("two")
    with pytest.raises(FileError, match="another machine went on"):
        late.note("where", "two")
    with pytest.raises(FileError, match="both went on"):
        Run.open("a")
    machine("three")
    Run.open("a").verify("l1")


def test_s6_a_store_that_hides_what_is_missing_names_the_permission(machine, monkeypatch):
    def forbidden(self, path, *options, **more):
        raise PermissionError("Forbidden")

    monkeypatch.setattr(MemoryFileSystem, "cat_file", forbidden)
    with pytest.raises(FileError, match="Forbidden; without ListBucket"):
        Run.create("a", CONFIG)


def test_s4_a_mounted_drive_keeps_a_run_stage_by_stage(tmp_path, monkeypatch):
    """Colab: the session dies after a stage; the next one has that stage and goes on."""
    monkeypatch.setenv("HJEPA_OUTPUTS", f"file://{tmp_path}/MyDrive/hjepa")
    for machine, stage in (("first", "data"), ("second", "l1")):
        monkeypatch.setenv("HJEPA_CACHE", str(tmp_path / machine))
        run = Run.open("a") if Run.exists("a") else Run.create("a", CONFIG)
        fill(run, stage)
        assert (tmp_path / "MyDrive/hjepa/a" / stage / f"{stage}.txt").is_file()
    assert Run.open("a").done("data")


@pytest.mark.parametrize("name", ["../../outside", "/outside", "a\\..\\b", ""])
def test_a_manifest_cannot_write_elsewhere(machine, store, tmp_path, name):
    run = Run.create("a", CONFIG)
    (place,) = [path for path in MemoryFileSystem.store if path.endswith("a/manifest.json")]
    item = {"path": name, "bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    content = json.dumps(run.manifest | {"files": [item]}).encode()
    fsspec.filesystem("memory").pipe_file(place, content)
    machine("two")
    with pytest.raises(FileError, match="no manifest of a remote run"):
        Run.open("a")
    assert not list(tmp_path.rglob("*outside*"))


def test_studies_and_tables_travel(machine, store):
    Run.create("study/cell", CONFIG)
    table = outputs_root() / "study/results.csv"
    table.write_text("1")
    (outputs_root() / "study/.cell.lock").touch()
    remote.push_files(table.parent)
    assert {name for name in store() if name.count("/") == 1} == {"study/results.csv"}
    assert store()["study/results.csv"] == b"1"
    machine("two")
    assert Run.open("study/cell").config == CONFIG


def test_a_local_root_has_nothing_to_do_with_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HJEPA_OUTPUTS", str(tmp_path))
    run = Run.create("a", CONFIG)
    fill(run, "data")
    assert remote.mirror(run.path) is None
    assert not remote.exists(run.path)
    assert {path.name for path in tmp_path.rglob("*")} == {
        "a", "latest", "manifest.json", ".manifest.json.lock", "data", "data.txt",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("url", "module", "message"),
    [("nowhere://x", "none", "Protocol not known"), ("s3://bucket/x", "s3fs", "s3fs")],
)
def test_unusable_roots_are_one_sentence(tmp_path, monkeypatch, capsys, url, module, message):
    monkeypatch.setenv("HJEPA_CACHE", str(tmp_path))
    monkeypatch.setenv("HJEPA_OUTPUTS", url)
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    assert main(["run", "--resume"]) == 2
    error = capsys.readouterr().err
    assert f"cannot open HJEPA_OUTPUTS={url}" in error
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_notebooks_run_in_their_own_processes(tmp_path, monkeypatch):
    """Kernels get the local folder and upload from there; the executed copies arrive too."""
    monkeypatch.setenv("HJEPA_CACHE", str(tmp_path / "one"))
    monkeypatch.setenv("HJEPA_OUTPUTS", f"file://{tmp_path}/store")
    parameters = nbformat.v4.new_code_cell("profile = 'smoke'\nrun = ''\nseed = 0\noverrides = ''")
    parameters.metadata["tags"] = ["parameters"]
    body = nbformat.v4.new_code_cell(
        "from hjepa_lib.runs.workspace import start\n"
        "ws = start('01', profile, run, seed, overrides)\n"
        "with ws.run.stage('data') as folder:\n"
        "    (folder / 'data.txt').write_text('made in a kernel')"
    )
    path = tmp_path / "01_small.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[parameters, body]), path)
    runner.run_notebooks(Run.create("a", CONFIG), [path], say=lambda *_, **__: None)
    monkeypatch.setenv("HJEPA_CACHE", str(tmp_path / "two"))
    code = (
        "from hjepa_lib.runs.run import Run; run = Run.open(); run.verify('data'); print(run.path)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    found = Run.at(outputs_root() / "a")
    assert done.stdout.strip() == str(found.path)
    assert (found.path / "data/data.txt").read_text() == "made in a kernel"
    assert (found.path / "notebooks/01_small.ipynb").is_file()
    assert found.manifest["notebooks"]["01_small"]["ok"]


def test_an_s3_server(tmp_path, monkeypatch):
    """The same against the S3 protocol, where moto (its server) and s3fs are installed."""
    server_module = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    settings = {"ENDPOINT_URL": f"http://{host}:{port}", "DEFAULT_REGION": "us-east-1"}
    settings |= {"ACCESS_KEY_ID": "any", "SECRET_ACCESS_KEY": "any"}
    for key, value in settings.items():
        monkeypatch.setenv(f"AWS_{key}", value)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        monkeypatch.setenv("HJEPA_OUTPUTS", "s3://bucket/runs")
        monkeypatch.setenv("HJEPA_CACHE", str(tmp_path / "one"))
        with pytest.raises(FileError, match=r"s3://bucket/runs.*bucket does not exist"):
            Run.create("a", CONFIG)
        s3fs.S3FileSystem().mkdir("bucket")
        run = Run.open("a")  # made here, uploaded now
        fill(run, "data", "numbers")
        fill(run, "l1", "weights")
        s3fs.S3FileSystem().pipe_file("bucket/runs/a/l1/l1.txt", b"weighty")
        monkeypatch.setenv("HJEPA_CACHE", str(tmp_path / "two"))
        with pytest.warns(UserWarning, match="differ from its manifest"):
            found = Run.open("a")
        found.verify("data")
        assert not found.done("l1")
        fill(found, "l1", "weights")
        assert s3fs.S3FileSystem().cat_file("bucket/runs/a/l1/l1.txt") == b"weights"
    finally:
        server.stop()
        s3fs.S3FileSystem.clear_instance_cache()
