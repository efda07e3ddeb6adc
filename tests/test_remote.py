import contextlib
import hashlib
import json
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from tiny import refused, tiny_config
from tiny_runs import Said, fill, write

from hjepa_lib.files import FileError
from hjepa_lib.runs import colab, remote
from hjepa_lib.runs import notebooks as runner
from hjepa_lib.runs.places import RunError, outputs_root
from hjepa_lib.runs.run import Run
from hjepa_lib.runs.workspace import start

CONFIG = tiny_config()


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Function of a name: go on at that machine."""
    monkeypatch.setenv("HJEPA_OUTPUTS", f"memory://{tmp_path.name}/runs")

    def move_to(name):
        monkeypatch.setenv("HJEPA_CACHE", str(tmp_path / name))

    move_to("one")
    yield move_to
    MemoryFileSystem.store.clear()


@pytest.fixture
def run(machine):
    return Run.create("a", CONFIG)


def store():
    files = MemoryFileSystem.store.items()
    return {path.split("/runs/")[1]: file.getvalue() for path, file in files}


LOST = OSError("connection reset\nby peer")


@contextlib.contextmanager
def broken(action, after, error=LOST, arrives=False):
    """`error` after so many calls, although the last one `arrives`."""
    whole, left = getattr(MemoryFileSystem, action), iter(range(after))

    def cut(self, *arguments, **options):
        over = next(left, None) is None
        found = whole(self, *arguments, **options) if arrives or not over else None
        if over:
            raise error
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemoryFileSystem, action, cut)
        yield


@contextlib.contextmanager
def interrupted(run):
    """Stage l1, of three files; its upload breaks off after the third file of all."""
    with (
        broken("pipe_file", 3),
        pytest.raises(FileError, match=r"cannot write memory://.*connection reset") as caught,
        run.stage("l1") as folder,
    ):
        yield folder
        for part in "abc":
            (folder / part).write_text(part)
    assert "\n" not in str(caught.value)


def overwrite(end, content):
    """Someone else writes the file of the store that ends so; None deletes it."""
    (place,) = [path for path in MemoryFileSystem.store if path.endswith(end)]
    system = fsspec.filesystem("memory")
    system.rm(place) if content is None else system.pipe_file(place, content)


def test_a_run_is_found_on_another_machine(machine):
    here = Run.create("a", CONFIG)
    assert here.path.is_relative_to(outputs_root())
    fill(here, "data", "numbers")
    machine("two")
    assert not (outputs_root() / "a").exists()
    found = Run.open()
    assert found.path != here.path
    assert found.config == CONFIG and found.manifest == here.manifest
    found.verify("data")
    assert (found.path / "data/data.txt").read_text() == "numbers"
    assert Run.exists("a") and store()["latest"] == b"a\n"
    refused(RunError, "'a' exists already", Run.create, "a", CONFIG)
    fill(found, "data", "newer")
    machine("one")
    assert (Run.open("a").path / "data/data.txt").read_text() == "newer"


def test_manifest_is_last_and_lists_what_is_there(machine, monkeypatch):
    whole, order = MemoryFileSystem.pipe_file, []

    def pipe_file(self, path, value, **options):
        whole(self, path, value, **options)
        order.append(path.split("/runs/")[1].removesuffix(".txt"))
        if path.endswith("/manifest.json"):
            for item in json.loads(value)["files"]:
                content = store()[f"a/{item['path']}"]
                assert len(content) == item["bytes"]
                assert hashlib.sha256(content).hexdigest() == item["sha256"]

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", pipe_file)
    run, last = Run.create("a", CONFIG), "a/manifest.json"
    fill(run, "data", "one")
    fill(run, "l1", "two")
    assert order == [last, "latest", last, "a/data/data", last, last, "a/l1/l1", last]
    order.clear()
    run.note("key", 1)
    assert order == [last]  # what has not changed is not sent again


def test_everything_but_work_in_progress_travels(machine, run):
    run.log({"stage": "l1", "step": 1, "loss": 0.5})
    sent = ["figures/one.png", "notebooks/01.ipynb", "report.html"]
    kept = ["resume/l1/state.pt", "notebooks/02.running.ipynb", ".hidden", "l1/.half.tmp"]
    for name in sent + kept:
        path = run.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    run.publish()
    told = ["manifest.json", "metrics.jsonl"]
    assert {*store()} == {"latest", *(f"a/{name}" for name in sent + told)}
    Run.create("study/cell", CONFIG)
    for name in ("results.csv", ".cell.lock"):
        (outputs_root() / "study" / name).write_text("1")
    remote.push_files(outputs_root() / "study")
    assert {*store()} >= {"study/results.csv"} and "study/.cell.lock" not in store()
    machine("two")
    assert Run.open("study/cell").config == CONFIG


def test_a_broken_upload_is_made_again(machine, run):
    fill(run, "data")
    with interrupted(run):  # two manifests and one file get through
        run.note("key", 1)
    assert run.done("l1")  # the local copy is whole
    machine("two")
    other = Run.open("a")
    assert other.done("data") and not other.done("l1")
    fill(other, "l1", "again")
    machine("three")
    third = Run.open("a")
    third.verify("l1")
    assert (third.path / "l1/l1.txt").read_text() == "again"
    assert [item["path"] for item in third.manifest["stages"]["l1"]["files"]] == ["l1/l1.txt"]


@pytest.mark.parametrize(("after", "arrives"), [(1, False), (2, True)])
def test_the_machine_that_lost_its_connection_catches_up(machine, run, after, arrives):
    with broken("pipe_file", after, arrives=arrives), pytest.raises(FileError, match="reset"):
        fill(run, "data")
    fill(Run.open("a"), "l1")  # uploads what is missing
    machine("two")
    Run.open("a").verify("data")


def test_an_interrupted_upload_goes_on_where_it_was(run):
    with interrupted(run):  # a manifest and two files get through
        pass
    overwrite("l1/a", b"as it was")
    run.publish()
    assert {store()[f"a/l1/{part}"] for part in "abc"} == {b"as it was", b"b", b"c"}


@pytest.mark.parametrize("damage", [b"weighty", b"wei", None])
def test_a_damaged_file_is_left_out_and_its_stage_made_again(machine, run, damage):
    fill(run, "data", "numbers")
    fill(run, "l1", "weights", reads=("data",))
    overwrite("l1/l1.txt", damage)
    machine("two")
    with pytest.warns(UserWarning, match=r"1 files of .* l1/l1.txt among them"):
        other = Run.open("a")
    assert other.done("data") and not other.done("l1")
    assert not (other.path / "l1/l1.txt").exists()
    fill(other, "l1", "weights", reads=("data",))
    assert store()["a/l1/l1.txt"] == b"weights"
    machine("three")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Run.open("a").verify("l1")


def test_an_interrupted_download_starts_over(machine, run):
    for part in "abc":
        fill(run, part, part)
    machine("two")
    with broken("cat_file", 3, KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
        Run.open("a")
    assert not (outputs_root() / "a/manifest.json").exists()
    for part in "abc":
        Run.open("a").verify(part)


def test_s2_a_second_writer_never_hides_what_the_first_uploaded(machine):
    fill(Run.create("a", CONFIG), "data")
    machine("two")
    Run.open("a")
    machine("one")
    fill(Run.at(outputs_root() / "a"), "l1", "one's")
    machine("two")
    late = Run.at(outputs_root() / "a")  # does not look at the store
    refused(FileError, "another machine went on with memory://", fill, late, "l2")
    assert Run.open("a").done("l1")  # nothing was made here yet, so it catches up
    machine("one")
    Run.at(outputs_root() / "a").note("where", "one")
    machine("two")
    refused(FileError, "another machine went on", late.note, "where", "two")
    refused(FileError, "both went on", Run.open, "a")
    machine("three")
    Run.open("a").verify("l1")


def test_two_processes_of_a_machine_are_one_writer(run, monkeypatch):
    write, begun = remote.Mirror.write, threading.Event()

    def first_slowly(self, *file):
        if not begun.is_set():
            begun.set()
            time.sleep(0.3)
        write(self, *file)

    monkeypatch.setattr(remote.Mirror, "write", first_slowly)
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(Run.at(run.path).note, "one", 1)
        begun.wait(10)
        two = pool.submit(Run.at(run.path).note, "two", 2)
        one.result(), two.result()
    assert json.loads(store()["a/manifest.json"])["notes"] == {"one": 1, "two": 2}


def test_s6_a_store_that_hides_what_is_missing_names_the_permission(machine):
    with (
        broken("cat_file", 0, PermissionError("Forbidden")),
        pytest.raises(FileError, match="Forbidden; without ListBucket"),
    ):
        Run.create("a", CONFIG)


@pytest.mark.parametrize("name", ["../../outside", "/outside", "a\\..\\b", ""])
def test_s10_a_manifest_cannot_write_elsewhere(machine, tmp_path, name):
    item = {"path": name, "bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    manifest = Run.create("a", CONFIG).manifest | {"files": [item]}
    overwrite("a/manifest.json", json.dumps(manifest).encode())
    machine("two")
    refused(FileError, "no manifest of a remote run", Run.open, "a")
    assert not list(tmp_path.rglob("*outside*"))


@pytest.mark.parametrize(
    ("url", "module", "message"),
    [("nowhere://x", "none", "Protocol not known"), ("s3://bucket/x", "s3fs", "s3fs")],
)
def test_unusable_roots_are_one_sentence(tmp_path, monkeypatch, failed, url, module, message):
    monkeypatch.setenv("HJEPA_CACHE", str(tmp_path))
    monkeypatch.setenv("HJEPA_OUTPUTS", url)
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    error = failed("run", "--resume")
    assert f"cannot open HJEPA_OUTPUTS={url}" in error and message in error


def test_s4_a_mounted_drive_keeps_what_a_notebook_made(tmp_path, monkeypatch):
    drive = tmp_path / "hjepa"
    monkeypatch.setattr(colab, "DRIVE", tmp_path)
    monkeypatch.setenv("COLAB_RELEASE_TAG", "1")

    def session(cache, chapter):
        monkeypatch.setenv("HJEPA_OUTPUTS", "")
        monkeypatch.delenv("HJEPA_OUTPUTS")
        monkeypatch.setenv("HJEPA_CACHE", str(tmp_path / cache))
        colab.set_up(chapter)
        return start(chapter, "smoke", "a", 0, "device=cpu,precision=fp32").run

    run = session("first", "01_data_prep")
    path = write(
        tmp_path,
        "01_small",
        "from hjepa_lib.runs.workspace import start\n"
        "ws = start('01', profile, run, seed, overrides)\n"
        "with ws.run.stage('data') as folder:\n"
        "    (folder / 'data.txt').write_text('made in a kernel')",
    )
    runner.run_notebooks(run, [path], say=Said())
    with pytest.raises(KeyboardInterrupt), run.stage("l1") as folder:
        (folder / "l1.txt").write_text("half")
        raise KeyboardInterrupt  # the session ends
    found = session("second", "02_train_l1")
    assert found.path != run.path and not found.done("l1")
    found.verify("data")
    assert (found.path / "data/data.txt").read_text() == "made in a kernel"
    assert found.manifest["notebooks"]["01_small"]["ok"]
    fill(found, "l1", "whole")
    assert (drive / "a/l1/l1.txt").read_text() == "whole"


def test_an_s3_server(tmp_path, monkeypatch):
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
        refused(FileError, r"s3://bucket/runs.*bucket does not exist", Run.create, "a", CONFIG)
        s3fs.S3FileSystem().mkdir("bucket")
        fill(Run.open("a"), "l1", "weights")  # made here, uploaded now
        s3fs.S3FileSystem().pipe_file("bucket/runs/a/l1/l1.txt", b"weighty")
        monkeypatch.setenv("HJEPA_CACHE", str(tmp_path / "two"))
        with pytest.warns(UserWarning, match="differ from its manifest"):
            found = Run.open("a")
        assert not found.done("l1")
        fill(found, "l1", "weights")
        assert s3fs.S3FileSystem().cat_file("bucket/runs/a/l1/l1.txt") == b"weights"
    finally:
        server.stop()
        s3fs.S3FileSystem.clear_instance_cache()
