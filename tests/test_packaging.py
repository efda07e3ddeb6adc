"""One list of dependencies, everywhere the same; nothing reaches for the network by itself."""

import ast
import functools
import importlib.metadata
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version
from tiny_runs import CLEAN, ROOT, git

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


def test_environment_makefile_and_project_agree():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert pip["pip"] == ["-c constraints.txt", "-e .[lab,dev,rl]"]
    python = next(entry for entry in conda if entry.startswith("python="))
    floor = PROJECT["project"]["requires-python"]
    assert floor == ">=" + python.split("=")[1]
    makefile = (ROOT / "Makefile").read_text()
    for extras in ("lab,dev,rl", "lab,dev,rl,browser"):
        assert f'-c constraints.txt -e ".[{extras}]"' in makefile
    assert os.access(ROOT / ".ci/run", os.X_OK)


def test_licence_citation_and_version_agree():
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["license"] == PROJECT["project"]["license"] == "MIT"
    assert citation["version"] == PROJECT["project"]["version"]
    assert citation["authors"][0]["name"] == PROJECT["project"]["authors"][0]["name"]


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
    command = [sys.executable, "-c", code, *names]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
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


def test_changes_name_what_exists():
    """In the table of imports, a short name lies beside the one before it."""
    text = (ROOT / "CHANGES.md").read_text()
    cells = re.findall(r"^\|.*\| ([^|]*hjepa_lib[^|]*) \|$", text, re.MULTILINE)
    assert len(cells) > 5
    for cell in cells:
        beside = "hjepa_lib"
        for name in re.findall(r"`([\w.]+)", cell.split(" (")[0]):
            name = name.strip(".")
            full = name if name.startswith("hjepa_lib") else f"{beside}.{name.split('.')[-1]}"
            assert pkgutil.resolve_name(full), name
            beside = full.rpartition(".")[0]


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
    python.unlink()  # S8: after a move there is no filter, and git refuses instead of committing
    path = tmp_path / "notebooks/01_a.ipynb"
    path.write_text(path.read_text() + "\n")
    with pytest.raises(subprocess.CalledProcessError):
        git(tmp_path, "add", "notebooks/01_a.ipynb")
