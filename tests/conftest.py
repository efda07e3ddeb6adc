"""Fixtures of several files: tiny settings, data, models and one whole run (see tiny.py)."""

import dataclasses
import os
import shutil

import hypothesis
import pytest
import tiny_pixels
import torch
from tiny import make_agent, make_level1, make_store, tiny_config, tiny_data, tiny_normaliser

from hjepa_lib.__main__ import main
from hjepa_lib.pixels import compare
from hjepa_lib.pixels.stages import train
from hjepa_lib.runs import stages
from hjepa_lib.runs.run import Run
from hjepa_lib.runs.workspace import Workspace
from hjepa_lib.training import probes

os.environ["OMP_NUM_THREADS"] = "1"  # of kernels
torch.set_num_threads(1)  # tensors are tiny: a second thread would only wait for the first
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")


def pytest_collection_modifyitems(items):
    """Notebooks first: one of them at the end would leave a core idle."""
    items.sort(key=lambda item: "notebook" not in item.path.name)


@pytest.fixture(scope="session")
def config():
    return tiny_config()


@pytest.fixture(scope="session")
def data():
    return tiny_data()


@pytest.fixture(scope="session")
def normaliser():
    return tiny_normaliser()


@pytest.fixture(scope="session")
def level1(config):
    return make_level1(config).eval().requires_grad_(False)


@pytest.fixture(scope="session")
def store(level1):
    return make_store(level1)


@pytest.fixture(scope="session")
def agent(config):
    return make_agent(config)


@pytest.fixture(scope="session")
def short_probe():
    """The position probe learns for 5 updates only: whole stages stay fast."""
    with pytest.MonkeyPatch.context() as patch:
        short = dataclasses.replace(probes.PROBE_OPTIM, updates=5, batch=64)
        patch.setattr(probes, "PROBE_OPTIM", short)
        yield


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("HJEPA_OUTPUTS", str(tmp_path / "outputs"))
    return tmp_path / "outputs"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """The outputs folder of all tests of a module."""
    root = tmp_path_factory.mktemp("outputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HJEPA_OUTPUTS", str(root))
        yield root


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    """The gallery of a checkout of the module's own; notebooks run without a display."""
    root = tmp_path_factory.mktemp("repository")
    (root / "outputs/gallery").mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hjepa_lib.runs.places.repository", lambda: root)
        patch.setenv("HJEPA_HEADLESS", "1")
        yield root / "outputs/gallery"


@pytest.fixture
def failed(capsys):
    """Function of a command's words -> the error, of one line, that ends it."""

    def call(*words):
        capsys.readouterr()
        assert main([*words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        return line

    return call


@pytest.fixture
def workspace_of(root, short_probe):
    """Function of a config and a name -> a new run in an outputs folder of its own."""

    def make(config, name="run"):
        return Workspace("test", Run.create(name, config, root))

    return make


@pytest.fixture(scope="session")
def trained(config, tmp_path_factory, short_probe):
    """Folder of a whole tiny run, of both levels. Copy it to change it."""
    root = tmp_path_factory.mktemp("outputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HJEPA_OUTPUTS", str(root))
        ws = Workspace("test", Run.create("trained", config, root))
        stages.load_trained(ws)
    return ws.run.path


@pytest.fixture(scope="session")
def pixel_run(tmp_path_factory):
    """Every stage of the tiny pixel comparison; nobody changes it."""
    root = tmp_path_factory.mktemp("outputs")
    config = tiny_pixels.tiny_config(auxiliary__use_for_enc_dec=True, optim__updates=10)
    ws = tiny_pixels.tiny_workspace(root, config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HJEPA_OUTPUTS", str(root))
        patch.setattr(compare, "RESAMPLES", 100)
        list(train(ws))
    return ws


@pytest.fixture(scope="module")
def ws(trained, outputs):
    """A copy of `trained`, the latest run of a module's outputs folder."""
    shutil.copytree(trained, outputs / "trained")
    (outputs / "latest").write_text("trained\n")
    return Workspace("test", Run.open("trained"))
