"""Headless notebooks, on tiny ones made here."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from tiny_runs import CPU, ROOT, SEED, Said, write

from hjepa_lib.config import profile
from hjepa_lib.files import WorkbookError
from hjepa_lib.runs import notebooks as runner
from hjepa_lib.runs.places import RunError
from hjepa_lib.runs.run import Run

pytestmark = pytest.mark.usefixtures("root")


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "notebooks"
    path.mkdir()
    return path


def play(run, notebooks, resume=False):
    said = Said()
    runner.run_notebooks(Run.open(run.name), notebooks, resume=resume, say=said)
    return said


def test_select_notebooks(folder):
    for name in ("01_a", "02_b", "04_d"):
        write(folder, name)
    (folder / "notes.ipynb").touch()

    def chosen(text):
        return [path.stem for path in runner.select_notebooks(text, folder)]

    assert chosen("01-02") == ["01_a", "02_b"]
    assert chosen("4, 1") == ["01_a", "04_d"]
    assert chosen("01-15") == ["01_a", "02_b", "04_d"]  # C6: a range takes what exists
    for bad, message in (
        ("5-9", "no notebook 5-9; there are: 01_a, 02_b, 04_d"),
        ("2-1", "no notebook 2-1"),
        ("all", "is not like 01-05"),
        ("", "is not like 01-05"),
    ):
        with pytest.raises(RunError, match=message):
            chosen(bad)
    write(folder, "01_a_old")
    with pytest.raises(RunError, match="01_a and 01_a_old have one number"):  # C6
        chosen("1")


def test_inspect_refuses_what_papermill_only_warns_about(folder):
    """N2."""
    good = write(folder, "01_a")
    runner.inspect_notebook(good, ("seed", "overrides"))
    notebook = nbformat.read(good.open(), 4)
    notebook.cells.append(nbformat.v4.new_code_cell("x = 1", metadata=notebook.cells[0].metadata))
    nbformat.write(notebook, folder / "03_c.ipynb")
    (folder / "05_e.ipynb").write_text("{half")
    for path, message in (
        (good, r"01_a\.ipynb has no parameter named 'sede'"),
        (write(folder, "02_b", tags=()), "has 0 cells tagged 'parameters'"),
        (folder / "03_c.ipynb", "has 2 cells"),
        (write(folder, "04_d", parameters="seed = = 1"), "readable parameters: invalid syntax"),
        (folder / "05_e.ipynb", "not a notebook"),
    ):
        with pytest.raises(WorkbookError, match=message):
            runner.inspect_notebook(path, ["sede"])


def test_prepare_refuses_before_anything_is_made(folder, root):
    notebook, full = write(folder, "02_b"), profile("full").override("device=cpu")
    runner.prepare(CPU, [notebook])
    with pytest.raises(RunError, match="takes days on a CPU; add --yes"):
        runner.prepare(full, [notebook])
    runner.prepare(full, [notebook], yes=True)
    with pytest.raises(RunError, match="has 0 cells"):
        runner.prepare(CPU, [notebook, write(folder, "03_c", tags=())])
    assert not root.exists()


WORK = """
import os
from pathlib import Path
assert os.environ["HJEPA_HEADLESS"] == "1" and run == "mine"
outputs = Path(os.environ["HJEPA_OUTPUTS"])
(outputs / run / "work.txt").open("a").write("x")
from tqdm import tqdm
import time
for _ in tqdm(range(30)):
    time.sleep(0.002)
"""


def test_run_resume_and_rerun(folder, root):
    notebooks = [write(folder, "01_a", WORK), write(folder, "02_b", SEED + "assert seed == 0")]
    run, before = Run.create("mine", CPU), dict(os.environ)
    said = play(run, notebooks)
    assert [line[:12] for line in said] == ["01_a        ", "02_b        "]
    assert all(" ok in 0:00:" in line for line in said)
    copies = sorted(path.name for path in (run.path / "notebooks").iterdir())
    assert copies == ["01_a.ipynb", "02_b.ipynb"]
    executed = nbformat.read((run.path / "notebooks/01_a.ipynb").open(), 4)
    (output,) = executed.cells[2].outputs  # the injected parameters are cell 1
    assert output.text.count("it/s") == 1  # N4: the progress bar leaves one clean line
    entry = Run.open("mine").manifest["notebooks"]["01_a"]
    assert entry["ok"] and entry["seconds"] > 0
    assert os.environ == before
    said = play(run, notebooks, resume=True)
    assert [line.split()[1:] for line in said] == [["done", "before"]] * 2
    write(folder, "01_a", WORK + "\n# changed")
    said = play(run, notebooks, resume=True)
    assert all(" ok in " in line for line in said)  # what follows a change runs again too
    assert (root / "mine/work.txt").read_text() == "xx"


def test_failed_notebook_is_kept_and_named_and_resume_goes_on(folder, root):
    notebooks = [write(folder, "01_a", "1"), write(folder, "02_b", "raise ValueError('bad\\nx')")]
    run, said = Run.create("mine", CPU), Said()
    message = r"02_b failed at In \[3\]: ValueError: bad \(kept"
    with pytest.raises(runner.NotebookFailed, match=message) as caught:
        runner.run_notebooks(run, notebooks, say=said)
    kept = root / "mine/notebooks/02_b.failed.ipynb"
    assert str(kept) in str(caught.value) and "\n" not in str(caught.value)
    assert "bad" in kept.read_text() and "failed after" in said[1]
    assert list(Run.open("mine").manifest["notebooks"]) == ["01_a"]
    write(folder, "02_b", "import os; os._exit(1)")
    with pytest.raises(runner.NotebookFailed, match="02_b failed: DeadKernelError") as caught:
        play(run, notebooks, resume=True)
    assert "\n" not in str(caught.value)
    write(folder, "02_b", "1")
    said = play(run, notebooks, resume=True)
    assert "done before" in said[0] and "ok in" in said[1]
    assert not kept.exists()


def test_s9_a_damaged_result_ends_after_the_page_is_written():
    run = Run.create("mine", CPU)
    (run.folder("results") / "flat.npz").write_text("half")
    with pytest.raises(WorkbookError, match="flat"):
        runner.finish(run, say=Said())
    assert (run.path / "report.html").is_file()


def test_s6_kernels_may_start_slowly(folder, monkeypatch):
    import papermill

    asked = {}

    def execute(source, target, **options):
        asked.update(options)
        Path(target).write_text("{}")

    monkeypatch.setattr(papermill, "execute_notebook", execute)
    play(Run.create("mine", CPU), [write(folder, "01_a")])
    assert asked["start_timeout"] >= 300


def test_ctrl_c_ends_the_kernel_and_says_how_to_resume(folder, tmp_path):
    pid_file = tmp_path / "pid"
    wait = f"import os, time\nopen({str(pid_file)!r}, 'w').write(str(os.getpid()))\ntime.sleep(100)"
    write(folder, "01_a", wait)
    code = f"""
import sys
from pathlib import Path
from hjepa_lib import __main__
from hjepa_lib.runs import notebooks as runner
select = runner.select_notebooks
runner.select_notebooks = lambda text: select(text, Path({str(folder)!r}))
settings = ["--set", "device=cpu", "precision=fp32"]
sys.exit(__main__.main(["run", "--profile", "smoke", "--notebooks", "1", "--name", "a", *settings]))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background makes its children ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    kernel = int(pid_file.read_text())
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    again = "python -m hjepa_lib run --name a --resume --notebooks 1"
    assert error.strip().splitlines()[-1] == f"interrupted; continue with: {again}"
    assert "Traceback" not in error
    with pytest.raises(ProcessLookupError):
        os.kill(kernel, 0)
    assert Run.open("a").manifest["notebooks"] == {}
