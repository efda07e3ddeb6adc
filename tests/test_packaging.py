import ast
import functools
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from fnmatch import fnmatch
from unittest.mock import Mock

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from tiny_runs import CLEAN, ROOT, git, python

from hjepa_lib.runs import colab
from hjepa_lib.runs.machine import revision

PACKAGE = ROOT / "hjepa_lib"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
IMPORT_NAMES = {"scikit-learn": "sklearn", "pillow": "PIL", "pyyaml": "yaml"}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


EXTRAS = PROJECT["project"]["optional-dependencies"]


def requirements(*extras):
    lines = [*PROJECT["project"]["dependencies"], *(line for one in extras for line in EXTRAS[one])]
    return [Requirement(line) for line in lines]


EVERYTHING = requirements(*EXTRAS)


def test_every_import_is_declared_and_every_declaration_used():
    """EB8."""
    core = {IMPORT_NAMES.get(r.name, r.name.replace("-", "_")) for r in requirements()}
    extras = {r.name.replace("-", "_") for r in EVERYTHING}
    extras |= {"IPython", "nbclient", "stable_baselines3", "ale_py"}
    used = set()
    for name, path in MODULES.items():
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found = {node.module.split(".")[0]}
            else:
                continue
            used |= found
            found -= {*sys.stdlib_module_names, "hjepa_lib", *core}
            assert found <= extras, f"{name} imports the undeclared {found}"
            assert not found or node not in tree.body, f"{name} imports {found} at import time"
    assert core <= used


def test_ranges_are_open_and_hold_what_is_tested_and_installed():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    tested = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pairs}
    assert not any("+" in version for version in tested.values())
    for requirement in EVERYTHING:
        operators = {specifier.operator for specifier in requirement.specifier}
        assert operators == {">="}, f"{requirement} is not an open range"
    for requirement in requirements("lab", "dev", "rl"):
        installed = Version(importlib.metadata.version(requirement.name)).public
        for version in (tested[requirement.name.lower()], installed):
            assert requirement.specifier.contains(version), f"{requirement} excludes {version}"
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=") + ".0"
    for found in importlib.metadata.distributions():
        name = re.sub(r"[-_.]+", "-", found.metadata["Name"]).lower()
        if tested.get(name) == Version(found.version).public:
            pythons = SpecifierSet(found.metadata.get("Requires-Python") or "")
            assert pythons.contains(oldest), f"{name} {found.version} needs Python {pythons}"


def test_environment_makefile_and_project_agree():
    *conda, pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert pip["pip"] == ["-c constraints.txt", "-e .[lab,dev,rl]"]
    python = next(entry for entry in conda if entry.startswith("python="))
    assert PROJECT["project"]["requires-python"] == ">=" + python.split("=")[1]
    makefile = (ROOT / "Makefile").read_text()
    for extras in ("lab,dev,rl", "lab,dev,rl,browser"):
        assert f'-c constraints.txt -e ".[{extras}]"' in makefile


def test_every_data_file_is_packaged():
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["hjepa_lib"]
    files = [path for path in PACKAGE.rglob("*") if path.is_file()]
    for path in files:
        name = path.relative_to(PACKAGE).as_posix()
        if path.suffix not in (".py", ".pyc") and not path.name.startswith("."):
            same_depth = [p for p in patterns if p.count("/") == name.count("/")]
            assert any(fnmatch(name, pattern) for pattern in same_depth), f"{name} is left out"


def test_all_modules_import_without_network_gpu_or_extras(tmp_path):
    """PL9, EB8."""
    code = """
import importlib, socket, sys
def refuse(*arguments):
    raise AssertionError("connects at import")
socket.socket.connect = refuse
for name in ("papermill", "ipywidgets", "jupyterlab", "nbformat", "stable_baselines3", "ale_py",
             "dask", "distributed", "playwright", "wandb"):
    sys.modules[name] = None
for name in sys.argv[1:]:
    importlib.import_module(name)
"""
    names = [name for name in MODULES if name != "hjepa_lib.__main__"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    python(code, *names, cwd=tmp_path, env=environment)
    assert list(tmp_path.iterdir()) == []


def test_no_registry_is_named_and_nobody_is_sent_to_one_for_this_library():
    """EB8; C9: nobody owns our name there."""
    for name in ("pyproject.toml", "constraints.txt", "environment.yml", "Makefile", ".ci/run"):
        text = (ROOT / name).read_text()
        assert not re.search(r"https?://|--index-url|--extra-index-url|--find-links", text), name
    texts = [*MODULES.values(), ROOT / "README.md", *(ROOT / "notebooks").glob("*.ipynb")]
    for path in texts:
        assert not re.search(r"pip install [^\n]*hjepa[-_]lib", path.read_text()), path


def test_relative_links_of_the_readme_lead_somewhere():
    """EB8."""
    links = re.findall(r"\]\(([^)#\s]+)|src=\"([^\"]+)\"", (ROOT / "README.md").read_text())
    for link in filter(None, (one or other for one, other in links)):
        if not link.startswith(("http", "mailto:")):
            assert (ROOT / link).exists(), f"README names {link}, which does not exist"


@pytest.mark.skipif(not (shutil.which("make") and shutil.which("git")), reason="needs make and git")
def test_set_up_installs_the_notebook_filter_and_spares_the_gallery(tmp_path):
    """N15-N17, S8."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt", ".gitattributes"):
        shutil.copy(ROOT / name, tmp_path / name)
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (tmp_path / ".venv/.set-up").touch()  # the packages are there already
    setup = functools.partial(
        subprocess.check_output, ["make", "setup"], cwd=tmp_path, env=CLEAN, text=True
    )
    assert "filter is not installed" in setup()
    git(tmp_path, "init", "-q")
    assert "not installed" not in setup()
    cell = nbformat.v4.new_code_cell("1", outputs=[nbformat.v4.new_output("stream", text="SECRET")])
    cell.metadata = {"papermill": {"duration": 1}, "tags": ["parameters"]}
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"papermill": {"version": "2"}})
    for name in ("notebooks/01_a.ipynb", "outputs/gallery/01_a.ipynb"):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        nbformat.write(notebook, path)
        git(tmp_path, "add", name)
    stripped = git(tmp_path, "show", ":notebooks/01_a.ipynb")
    assert "SECRET" not in stripped and "papermill" not in stripped and "parameters" in stripped
    assert "SECRET" in git(tmp_path, "show", ":outputs/gallery/01_a.ipynb")
    python.unlink()  # S8: without a filter, as after a move, git refuses
    path = tmp_path / "notebooks/01_a.ipynb"
    path.write_text(path.read_text() + "\n")
    with pytest.raises(subprocess.CalledProcessError):
        git(tmp_path, "add", "notebooks/01_a.ipynb")


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
    subprocess.run(["tar", "-xzf", tmp_path / "hjepa-1.tar.gz", "-C", tmp_path], check=True)
    assert names == {"hjepa/hjepa_lib/__init__.py", "hjepa/notebooks/01_a.ipynb", "hjepa/VERSION"}
    assert (tmp_path / "hjepa/hjepa_lib/__init__.py").read_text() == "hjepa_lib/__init__.py"
    commit = git(project, "rev-parse", "HEAD")
    assert commit in done.stdout
    assert revision(tmp_path / "hjepa") == commit


def test_what_cannot_be_packed_is_one_sentence(project, tmp_path):
    done = pack(project, tmp_path / "mine.zip")
    assert done.returncode == 2 and "the notebooks look for hjepa*.tar.gz" in done.stderr
    shutil.rmtree(project / ".git")
    assert revision(project) == "unknown"  # VERSION is that of a checkout: nobody filled it in
    done = pack(project, tmp_path / "hjepa.tar.gz")
    assert done.returncode == 2 and done.stderr.startswith("error: packing needs git")
    assert not list(tmp_path.glob("hjepa.tar.gz*"))


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
    assert {*colab.EXTRAS.values()} <= EXTRAS.keys()
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
    assert kept == [
        f"{name}=={importlib.metadata.version(name)}" for name in ("torch", "numpy", "matplotlib")
    ]
    assert f"runs go to file://{tmp_path}/hjepa" in capsys.readouterr().out
    colab.set_up("01_data_prep")
    assert len(calls) == 1
    # A kernel that starts again finds the library: its folder is not unpacked anew.
    known = {"torch": "2", "numpy": "2", "matplotlib": "3"}
    absent = Mock(side_effect=importlib.metadata.PackageNotFoundError)
    monkeypatch.setattr(colab, "version", lambda name: known.get(name) or absent())
    colab.set_up("01_data_prep")
    assert calls[1:] == [[*calls[0][:-1], str(root)]]
    monkeypatch.delenv("HJEPA_OUTPUTS")
