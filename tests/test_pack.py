"""The tarball for Colab, and the first cell of the notebooks that can use it."""

import importlib.util
import re
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import version
from types import SimpleNamespace

import nbformat
import pytest
from tiny_runs import CLEAN, ROOT, git

from hjepa_lib.runs import colab
from hjepa_lib.runs.machine import revision


@pytest.fixture
def project(tmp_path):
    root = tmp_path / "project"
    for name in ("hjepa_lib/__init__.py", "notebooks/01_a.ipynb", "tests/test_a.py", ".ci/run"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    for name in ("colab_pack.sh", ".gitattributes", "VERSION"):
        shutil.copy(ROOT / name, root / name)
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "x")
    return root


def pack(root, target):
    command = [str(root / "colab_pack.sh"), str(target)]
    return subprocess.run(command, cwd=root.parent, env=CLEAN, capture_output=True, text=True)


def test_what_is_committed_is_packed_with_its_revision(project, tmp_path):
    (project / "hjepa_lib/__init__.py").write_text("changed")
    (project / "secret.txt").write_text("mine")
    done = pack(project, tmp_path / "hjepa-1.tar.gz")
    assert "not committed stay out" in done.stderr
    with tarfile.open(tmp_path / "hjepa-1.tar.gz") as archive:
        names = {entry.name for entry in archive.getmembers() if entry.isfile()}
        archive.extractall(tmp_path, filter="data")
    assert names == {"hjepa/hjepa_lib/__init__.py", "hjepa/notebooks/01_a.ipynb", "hjepa/VERSION"}
    assert (tmp_path / "hjepa/hjepa_lib/__init__.py").read_text() == "hjepa_lib/__init__.py"
    commit = git(project, "rev-parse", "HEAD")
    assert commit in done.stdout
    assert revision(tmp_path / "hjepa") == commit
    assert revision(project) == f"{commit}-dirty"


def test_what_cannot_be_packed_is_one_sentence(project, tmp_path):
    done = pack(project, tmp_path / "mine.zip")
    assert done.returncode == 2 and "the notebooks look for hjepa*.tar.gz" in done.stderr
    shutil.rmtree(project / ".git")
    done = pack(project, tmp_path / "hjepa.tar.gz")
    assert done.returncode == 2 and done.stderr.startswith("error: packing needs git")
    assert not list(tmp_path.glob("hjepa.tar.gz*"))


def test_without_git_and_version_the_installed_commit_counts(tmp_path, monkeypatch):
    """PEP 610."""
    files = {"direct_url.json": '{"vcs_info": {"commit_id": "ab12"}}'}
    installed = SimpleNamespace(read_text=files.get)
    monkeypatch.setattr("importlib.metadata.distribution", lambda name: installed)
    (tmp_path / "VERSION").write_text("$Format:%H$\n")  # of a checkout: nobody filled it in
    assert revision(tmp_path) == "ab12"
    (tmp_path / "VERSION").write_text("cd34\n")
    assert revision(tmp_path) == "cd34"


@pytest.fixture
def content(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = tmp_path / "content"
    folder.mkdir()
    return folder


def first_cell(content, monkeypatch, installed=False):
    notebook = sorted((ROOT / "notebooks").glob("*.ipynb"))[0]
    code = next(c.source for c in nbformat.read(notebook, 4).cells if c.cell_type == "code")
    code, count = re.subn(r'"/content"\)', f"{str(content)!r})", code)
    assert count == 1
    if not installed:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    chapters = []
    monkeypatch.setattr(colab, "set_up", chapters.append)
    exec(compile(code, notebook.name, "exec"), {})
    return chapters


def tarball(content, name, **files):
    root = content.parent / name
    for file, text in {"hjepa_lib/__init__.py": "", **files}.items():
        (root / "hjepa" / file).parent.mkdir(parents=True, exist_ok=True)
        (root / "hjepa" / file).write_text(text)
    shutil.make_archive(str(content / f"hjepa-{name}"), "gztar", root)


def test_s10_first_cell_unpacks_the_last_tarball_into_an_empty_folder(content, monkeypatch):
    (content / "hjepa/hjepa_lib").mkdir(parents=True)
    (content / "hjepa/hjepa_lib/deleted.py").write_text("a module of an older tarball")
    tarball(content, "1", old="")
    tarball(content, "2", new="")
    assert first_cell(content, monkeypatch) == ["01_data_prep"]
    assert sys.path[0] == str(content / "hjepa")  # an editable install needs a new process
    names = {path.name for path in (content / "hjepa").rglob("*")}
    assert names == {"hjepa_lib", "__init__.py", "new"}


def test_first_cell_takes_a_clone_and_says_what_is_missing(content, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"^upload the project's tarball to /content, or"):
        first_cell(content, monkeypatch)
    (content / "workbook/hjepa_lib").mkdir(parents=True)
    first_cell(content, monkeypatch)
    assert sys.path[0] == str(content / "workbook")


def test_first_cell_unpacks_nothing_where_the_library_is(content, monkeypatch):
    tarball(content, "1")
    before = list(sys.path)
    assert first_cell(content, monkeypatch, installed=True) == ["01_data_prep"]
    assert sys.path == before
    assert [path.name for path in content.iterdir()] == ["hjepa-1.tar.gz"]


def test_s5_set_up_installs_what_the_chapter_needs_and_keeps_torch(tmp_path, monkeypatch, capsys):
    calls = []
    root = tmp_path / "hjepa"
    (root / "hjepa_lib/runs").mkdir(parents=True)
    monkeypatch.setattr(colab, "__file__", str(root / "hjepa_lib/runs/colab.py"))
    monkeypatch.setattr(colab.subprocess, "run", lambda command, check: calls.append(command))
    for name in ("HJEPA_OUTPUTS", "COLAB_RELEASE_TAG"):
        monkeypatch.delenv(name, raising=False)
    colab.set_up("10_gym_data")
    assert calls == []
    assert f"runs go to {root / 'outputs'}" in capsys.readouterr().out
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab")
    monkeypatch.setattr(colab, "DRIVE", tmp_path)
    colab.set_up("10_gym_data")
    assert calls[0][-1] == f"{root}[rl]"
    kept = (root / ".keep.txt").read_text().splitlines()
    assert kept == [f"{name}=={version(name)}" for name in ("torch", "numpy", "matplotlib")]
    assert f"runs go to file://{tmp_path}/hjepa" in capsys.readouterr().out
    monkeypatch.delenv("HJEPA_OUTPUTS")
