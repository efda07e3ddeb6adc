"""JupyterLab and a browser for the widget tests: `make test-browser`, or pytest tests/browser.

The browser is Playwright's own Chromium, or the binary named by the variable CHROMIUM.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra `browser`")
NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "06_inspect_rollouts.ipynb"
PATIENCE = 300  # seconds that a busy machine may need for one thing
SMOKE = {"profile": "smoke", "overrides": "device=cpu,precision=fp32"}


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """Address of a JupyterLab without token that opens notebook 06 with the smoke parameters."""
    folder = tmp_path_factory.mktemp("lab")
    notebook = parameterize_notebook(load_notebook_node(str(NOTEBOOK)), SMOKE)
    nbformat.write(notebook, folder / NOTEBOOK.name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {f"JUPYTER_{one}_DIR": str(folder / one) for one in ("CONFIG", "DATA", "RUNTIME")}
    own |= {"OMP_NUM_THREADS": "1", "HJEPA_OUTPUTS": str(folder / "outputs")}
    environment = {k: v for k, v in os.environ.items() if k != "HJEPA_HEADLESS"} | own
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}",
        "--ip=127.0.0.1", "--IdentityProvider.token=", f"--ServerApp.root_dir={folder}",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        "--LabApp.news_url=None",
    ]  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    with open(folder / "server.log", "wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)
        try:
            deadline = time.monotonic() + PATIENCE
            while not _answers(f"{address}/api/status"):
                assert server.poll() is None, (folder / "server.log").read_text()
                assert time.monotonic() < deadline, "JupyterLab does not answer"
                time.sleep(0.3)
            yield address
        finally:
            server.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(30)
            server.kill()


def _answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as reply:
        return reply.status == 200
    return False


@pytest.fixture(scope="session")
def browser():
    named = os.environ.get("CHROMIUM") or None
    if named and not shutil.which(named):
        pytest.fail(f"CHROMIUM names {named}, which is no program")
    with sync_api.sync_playwright() as play:
        # Without a sandbox, because test machines often run as root in a container.
        chromium = play.chromium.launch(executable_path=named, args=["--no-sandbox"])
        yield chromium
        chromium.close()
