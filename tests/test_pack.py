"""The tarball for Colab: same bytes twice, the right files, and a first cell that can use it."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

import nbformat
import pytest

from hjepa_lib.runs import pack
from hjepa_lib.runs.revision import revision

ROOT = Path(__file__).resolve().parents[1]
CELL = nbformat.v4.new_code_cell("1", outputs=[nbformat.v4.new_output("stream", text="SECRET")])


@pytest.fixture
def project(tmp_path):
    """A small project beside a real copy of the packing code; no git."""
    root = tmp_path / "project"
    for name in pack.FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    for name in (
        "hjepa_lib/deep/module.py", "hjepa_lib/deep/data.npz", "examples/world.py",
        "hjepa_lib/__pycache__/module.pyc", "hjepa_lib/old.pyc", "hjepa_lib/.module.py.1.tmp",
        "notebooks/.ipynb_checkpoints/01_a-checkpoint.ipynb", "notebooks/scratch.csv",
        "outputs/laptop/manifest.json", "outputs/pretrained/manifest.json",
        "outputs/pretrained/l1/model.safetensors", "tests/test_a.py", ".venv/bin/python",
        "colab_pack.sh", "hjepa-colab.tar.gz",
    ):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    shutil.copy(ROOT / "colab_pack.sh", root / "colab_pack.sh")
    for name in ("__init__.py", "pack.py", "revision.py"):
        shutil.copy(ROOT / "hjepa_lib" / name, root / "hjepa_lib" / name)
    write_notebook(root)
    return root


def write_notebook(root):
    cell = CELL.copy()
    cell.execution_count = 3
    cell.metadata = {"papermill": {"duration": 1}, "tags": ["parameters"]}
    metadata = {"papermill": {"version": "2"}, "language_info": {"name": "python"}}
    nbformat.write(
        nbformat.v4.new_notebook(cells=[cell], metadata=metadata), root / "notebooks/01_a.ipynb"
    )


def call(root, *arguments, **options):
    """Run the script of `root`, somewhere else."""
    return subprocess.run(
        [str(root / "colab_pack.sh"), *arguments],
        cwd=root.parent,
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def names(path):
    with tarfile.open(path) as archive:
        return [entry.name for entry in archive.getmembers()]


def read(path, name):
    with tarfile.open(path) as archive:
        return archive.extractfile(f"{pack.FOLDER}/{name}").read()


# --- the tarball ------------------------------------------------------------------------------
def test_the_same_files_give_the_same_bytes(project, tmp_path):
    """Whenever it is packed, whoever owns the files, in whatever order they were made."""
    first, second = tmp_path / "hjepa-1.tar.gz", tmp_path / "hjepa-2.tar.gz"
    assert call(project, str(first)).returncode == 0
    for path in sorted(project.rglob("*"), reverse=True):
        if path.is_file():
            content, mode = path.read_bytes(), path.stat().st_mode
            path.unlink()
            path.write_bytes(content)
            path.chmod(mode | 0o020)
            os.utime(path, (1e9, 1e9))
    assert call(project, str(second)).returncode == 0
    assert first.read_bytes() == second.read_bytes()
    (project / "README.md").write_text("changed")
    assert call(project, str(second)).returncode == 0
    assert first.read_bytes() != second.read_bytes()


def test_code_notebooks_and_environment_are_in_it_and_nothing_else(project, tmp_path):
    path = tmp_path / "hjepa.tar.gz"
    done = call(project, str(path))
    wanted = {
        *pack.FILES, "VERSION", "notebooks/01_a.ipynb", "examples/world.py",
        "hjepa_lib/__init__.py", "hjepa_lib/runs/pack.py", "hjepa_lib/runs/revision.py",
        "hjepa_lib/deep/module.py", "hjepa_lib/deep/data.npz",
    }  # fmt: skip
    found = names(path)
    assert found == sorted(f"hjepa/{name}" for name in wanted)
    assert done.stdout.startswith(f"{path}: {len(wanted)} files, ")
    assert "upload hjepa.tar.gz" in done.stdout


def test_pretrained_weights_come_on_request(project, tmp_path):
    path = tmp_path / "hjepa.tar.gz"
    assert call(project, str(path), "--pretrained").returncode == 0
    added = [name for name in names(path) if "outputs" in name]
    assert added == [
        "hjepa/outputs/pretrained/l1/model.safetensors", "hjepa/outputs/pretrained/manifest.json"
    ]  # fmt: skip
    shutil.rmtree(project / "outputs/pretrained")
    path.unlink()
    done = call(project, str(path), "--pretrained")
    assert done.returncode == 2
    assert done.stderr.startswith("error: there are no weights in outputs/pretrained")
    assert not path.exists()


def test_notebooks_lose_their_outputs_as_with_nbstripout(project, tmp_path):
    """N15: the working copy may have been executed; what is shared is not."""
    path = tmp_path / "hjepa.tar.gz"
    call(project, str(path))
    text = read(path, "notebooks/01_a.ipynb").decode()
    assert "SECRET" not in text
    assert "papermill" not in text
    (cell,) = json.loads(text)["cells"]
    assert cell["metadata"] == {"tags": ["parameters"]}
    assert cell["execution_count"] is None
    assert "SECRET" in (project / "notebooks/01_a.ipynb").read_text()


def test_committed_notebooks_are_packed_byte_for_byte():
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        assert pack.stripped(path.read_bytes()) == path.read_bytes(), path.name


def test_a_name_that_the_notebooks_do_not_find_is_refused(project, tmp_path):
    done = call(project, str(tmp_path / "mine.zip"))
    assert done.returncode == 2
    assert "the notebooks look for hjepa*.tar.gz" in done.stderr


def test_a_file_that_is_missing_is_named(project, tmp_path):
    (project / "LICENSE").unlink()
    done = call(project, str(tmp_path / "hjepa.tar.gz"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "LICENSE" in done.stderr
    assert len(done.stderr.splitlines()) == 1


# --- VERSION ----------------------------------------------------------------------------------
@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_version_is_the_commit_and_outlives_git(project, tmp_path):
    """Packed from a checkout, unpacked without git, packed again there: the revision stays."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    (project / ".gitignore").write_text("outputs\n*.tar.gz\n")
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "x"]):
        subprocess.run(["git", *command], cwd=project, check=True, env=clean)
    path = tmp_path / "hjepa.tar.gz"
    call(project, str(path))
    commit = read(path, "VERSION").decode()
    assert re.fullmatch(r"[0-9a-f]{40}\n", commit)
    with tarfile.open(path) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = tmp_path / pack.FOLDER
    assert revision(unpacked) == commit.strip()
    assert pack.tarball(pack.contents(unpacked)) == path.read_bytes()
    (project / "README.md").write_text("changed")
    call(project, str(path))
    assert read(path, "VERSION").decode() == commit.strip() + "-dirty\n"


def test_without_git_and_version_the_installed_commit_counts(tmp_path, monkeypatch):
    """pip from a URL leaves no folder, but it writes down what it installed (PEP 610)."""
    assert revision(tmp_path) == "unknown"
    written = {"url": "https://example.org/x.git", "vcs_info": {"vcs": "git", "commit_id": "ab12"}}

    class Installed:
        def read_text(self, name):
            return json.dumps(written) if name == "direct_url.json" else None

    monkeypatch.setattr("hjepa_lib.runs.revision.metadata.distribution", lambda name: Installed())
    assert revision(tmp_path) == "ab12"
    (tmp_path / "VERSION").write_text("cd34\n")
    assert revision(tmp_path) == "cd34"


# --- the first cell of every notebook ---------------------------------------------------------
@pytest.fixture
def content(tmp_path, monkeypatch):
    """What /content is in Colab."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = tmp_path / "content"
    folder.mkdir()
    return folder


def first_cell(content, monkeypatch, *, colab=True, installed=False, source=""):
    """Execute the cell with another /content; returns the arguments of %pip, a list of lines."""
    notebook = sorted((ROOT / "notebooks").glob("*.ipynb"))[0]
    code = next(c.source for c in nbformat.read(notebook, 4).cells if c.cell_type == "code")
    assert code.count('"/content"') == 1
    code = code.replace('"/content"', repr(str(content)))
    code = code.replace('source = ""', f"source = {source!r}")
    code, count = re.subn(r"(?m)^(\s*)%pip (.*)$", r'\1pip.append(f"\2")', code)
    assert count == 1
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed else None)
    if colab:
        monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab")
    else:
        monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    found = {"pip": []}
    exec(compile(code, notebook.name, "exec"), found)
    return found["pip"]


def test_first_cell_unpacks_the_newest_tarball(content, monkeypatch):
    for number, name in enumerate(("hjepa-new.tar.gz", "hjepa-colab.tar.gz")):
        files = {"hjepa_lib/__init__.py": b"", "VERSION": f"{number}\n".encode()}
        (content / name).write_bytes(pack.tarball(files))
        os.utime(content / name, (1e9 - number, 1e9 - number))
    pip = first_cell(content, monkeypatch)
    assert pip == [f"install -q -c {content}/keep.txt -e {content}/hjepa"]
    assert sys.path[0] == str(content / "hjepa")  # an editable install needs a new process
    assert (content / "hjepa/VERSION").read_text() == "0\n"


def test_first_cell_never_lets_pip_replace_what_colab_brings(content, monkeypatch):
    """The constraints hold the versions that are there, local parts such as +cu126 included."""
    first_cell(content, monkeypatch, source="git+https://example.org/x.git")
    kept = (content / "keep.txt").read_text().splitlines()
    assert kept == [f"{name}=={version(name)}" for name in ("torch", "numpy", "matplotlib")]


def test_first_cell_takes_a_clone_or_a_url(content, monkeypatch):
    (content / "sample_data").mkdir()
    (content / "workbook/hjepa_lib").mkdir(parents=True)
    (content / "workbook/hjepa_lib/__init__.py").touch()
    pip = first_cell(content, monkeypatch)
    assert pip == [f"install -q -c {content}/keep.txt -e {content}/workbook"]
    url = "git+https://example.org/x.git"
    pip = first_cell(content, monkeypatch, source=url)
    assert pip == [f"install -q -c {content}/keep.txt {url}"]


def test_first_cell_says_what_is_missing(content, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"^upload the project's tarball to /content, or"):
        first_cell(content, monkeypatch)


@pytest.mark.parametrize("where", [{"colab": False}, {"installed": True}])
def test_first_cell_does_nothing_elsewhere_or_a_second_time(content, monkeypatch, where):
    """Locally, under papermill, and when it is run again in the same kernel."""
    (content / "hjepa.tar.gz").write_bytes(pack.tarball({"hjepa_lib/__init__.py": b""}))
    before = list(sys.path)
    assert first_cell(content, monkeypatch, **where) == []
    assert sys.path == before
    assert [path.name for path in content.iterdir()] == ["hjepa.tar.gz"]
