"""summary.json's schema and the self-contained report.html."""

import math
import re
import struct
import zlib

import numpy as np
import pytest

from hjepa_lib.config import profile
from hjepa_lib.evaluation.statistics import wilson
from hjepa_lib.files import read_json, write_json
from hjepa_lib.runs import report as html
from hjepa_lib.runs import summary
from hjepa_lib.runs.run import Run
from hjepa_lib.runs.summary import RESULT_FIELDS, SummaryError

ISSUE_NAMES = """
method cost protocol layouts dynamics budget split case world weights
n successes success_rate ci95 success_first_1p41
success_first_4p5 success_last_1p41 success_last_4p5 cross_wall_rate init_plan_cross_wall_rate
planning_error_mean planning_error_mean_rmse final_distance_mean avg_termination_step
first_crossing_steps efficiency_score path_efficiency flops_per_step model_transitions_per_step
seconds_per_episode latency_single_episode planner data probe_px_encoder probe_px_predictor
train_seconds parameters seed device trials_hash version
"""
"""What every result entry is documented to hold."""


def result(method="flat", cost="distance", successes=97, n=100, **changes):
    """A valid entry."""
    entry = dict.fromkeys(RESULT_FIELDS, 0.5)
    entry |= {"method": method, "cost": cost, "protocol": "p1", "layouts": "fixed"}
    entry |= {"dynamics": "bounce", "budget": 1.0, "n": n, "successes": successes}
    entry |= {"success_rate": successes / n, "ci95": list(wilson(successes, n))}
    entry |= {"planner": {"horizon": 8}, "parameters": 1000, "seed": 0, "device": "cpu"}
    entry |= {"trials_hash": "ab", "version": "0.1.0", "split": "test", "case": "ef"}
    entry |= {"world": "generated", "weights": {"l1": "this run"}}
    entry |= {
        "data": {
            "source": "generated",
            "recipe": "good",
            "transitions": 1,
            "dynamics": "blocked",
            "hash": "cd",
        }
    }
    return entry | changes


def floors():
    return [result("random", "none", 7), result("oracle", "none", 100)]


@pytest.fixture
def run(tmp_path):
    config = profile("laptop").override("device=cpu,precision=fp32,level1.optim.updates=9")
    return Run.create("laptop-s0", config, tmp_path)


def test_schema_has_exactly_the_documented_names():
    assert sorted(RESULT_FIELDS) == sorted(ISSUE_NAMES.split())
    assert all(field.meaning for field in RESULT_FIELDS.values())


def test_build_validates_and_survives_json(run):
    numbers = result(successes=np.int64(97), flops_per_step=np.float32(2), cross_wall_rate=math.nan)
    built = summary.build(run, [*floors(), numbers])
    write_json(run.path / "summary.json", built)
    back = read_json(run.path / "summary.json")
    summary.validate(back)
    assert back == built
    assert back["results"][2]["cross_wall_rate"] is None
    assert back["profile"] == "laptop"
    summary.validate(summary.build(run, []))  # nothing evaluated yet


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sucess_rate": 1.0}, "result 2 has the unknown field 'sucess_rate'"),
        ({"method": 3}, "result 2: method is 3 of the wrong type"),
        ({"n": True}, "n is True of the wrong type"),
        ({"n": 100.0}, "n is 100.0 of the wrong type"),
        ({"success_rate": None}, "success_rate is None"),
        ({"success_rate": 0.5}, "success_rate 0.5 is not 97 / 100"),
        ({"successes": 101}, "success_rate"),
        ({"path_efficiency": 1.5}, r"outside \[0, 1\]"),
        ({"final_distance_mean": -1.0}, "outside"),
        ({"ci95": [0.1, 0.2]}, "does not hold success_rate"),
        ({"ci95": [0.9]}, r"not \[low, high\]"),
        ({"data": {"source": "", "recipe": "good"}}, "data lacks 'transitions'"),
        ({"method": "random", "cost": "none"}, "two results share"),
    ],
)
def test_wrong_entries_are_named(run, changes, message):
    with pytest.raises(SummaryError, match=message):
        summary.build(run, [*floors(), result() | changes])


def test_every_field_is_required_and_nan_is_refused_where_undefined_is_not_allowed(run):
    for name, field in RESULT_FIELDS.items():
        entry = result()
        del entry[name]
        with pytest.raises(SummaryError, match=f"lacks '{name}'"):
            summary.build(run, [*floors(), entry])
        if field.nullable:
            summary.build(run, [*floors(), result() | {name: math.nan}])
        else:
            with pytest.raises(SummaryError, match=name):
                summary.build(run, [*floors(), result() | {name: math.nan}])


def test_entries_with_one_key_are_refused_and_floors_are_required(run):
    """F12: no summary is overwritten; F15: random and oracle stand beside every method."""
    with pytest.raises(SummaryError, match="two results share"):
        summary.build(run, [*floors(), result(), result(successes=3)])
    summary.build(run, [*floors(), result(), result(budget=0.5)])
    for missing, rest in (("random", floors()[1:]), ("oracle", floors()[:1])):
        with pytest.raises(SummaryError, match=f"lack the method '{missing}'"):
            summary.build(run, [*rest, result()])


def test_summary_as_a_whole_is_checked(run):
    good = summary.build(run, floors())
    for bad in ([], {"results": {}}, good | {"schema": 99}, {"results": []}):
        with pytest.raises(SummaryError):
            summary.validate(bad)


def png(width, height):
    """A white PNG of the given size."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    rows = b"".join(b"\0" + b"\xff" * 3 * width for _ in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


NOTEBOOK = {
    "cells": [
        {"cell_type": "markdown", "source": ["# 02 · A <chapter>\n", "Text."]},
        {"cell_type": "code", "source": [], "outputs": [{"data": {"image/png": "", "a": ""}}]},
        {"cell_type": "code", "source": [], "outputs": [{"text": "no picture"}]},
    ]
}


def test_report_is_self_contained(run):
    """No remote URL, images inside, text escaped, tables of every setting."""
    figures = run.folder("figures")
    (figures / "loss.png").write_bytes(png(4, 4))
    (figures / "wide.png").write_bytes(png(40, 4))
    (figures / "episode.gif").write_bytes(b"GIF89a" + struct.pack("<HH", 130, 65) + b"\0" * 20)
    run.note("figures", {"loss.png": {"notebook": "02_train_l1", "caption": "<Loss> & terms"}})
    run.note("data_fallback", "no network: generated data")
    for stem in ("02_train_l1", "03_x.failed", "04_y.running"):
        write_json(run.folder("notebooks") / f"{stem}.ipynb", NOTEBOOK)
    run.record_notebook("02_train_l1", {"ok": True, "seconds": 61.0})
    entries = [*floors(), result("L1+L2", successes=80), result()]
    entries.insert(0, result(dynamics="blocked", successes=99, latency_single_episode=None))
    write_json(run.path / "summary.json", summary.build(run, entries))
    page = html.write_report(run).read_text()

    assert not re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?\s*(?:https?:)?//', page)
    assert "<script" not in page
    assert "@import" not in page
    assert page.count('src="data:image/png;base64,') == 2
    assert page.count('src="data:image/gif;base64,') == 1
    assert '<figure class="card wide">' in page
    assert "&lt;Loss&gt; &amp; terms" in page
    assert "<Loss>" not in page
    assert "<b>flat, distance cost</b> solves <b>97 of 100</b>" in page
    assert page.index("<h3>P1, fixed layouts, bounce") < page.index(
        "<h3>P1, fixed layouts, blocked"
    )
    assert page.index("<td>random") < page.index("<td>L1+L2") < page.index("<td>oracle")
    assert "no network: generated data" in page
    assert f"level1.optim.updates: {profile('laptop').level1.optim.updates} -&gt; 9" in page
    assert (
        '<td class="text"><a href="notebooks/02_train_l1.ipynb">02 · A &lt;chapter&gt;</a></td>'
        "<td>1</td><td>61.0</td>" in page
    )
    assert re.search(r'href="notebooks/03_x\.failed\.ipynb">[^/]+</a></td><td>failed</td>', page)
    for link in re.findall(r'href="([^"]+)"', page):
        assert (run.path / link).is_file()
    assert "running" not in page
    assert "prefers-color-scheme: dark" in page
    assert "$" not in page.split("</style>")[1]
    assert "nan" not in page.lower().split("<body>")[1].replace("finance", "")


def test_report_of_an_unfinished_run_and_of_large_images(run):
    page = html.write_report(run).read_text()
    assert "No planners are compared in this run" in page
    assert "Executed notebooks" not in page
    assert "<h2>Results" not in page
    big = run.folder("figures") / "big.png"
    big.write_bytes(png(4, 4) + b"\0" * 2_100_000)
    path = html.write_report(run)
    assert 'src="figures/big.png"' in path.read_text()
    assert path.stat().st_size < 100_000  # PL14: bounded outputs


def test_damaged_summary_stops_the_report(run):
    (run.path / "summary.json").write_text('{"results": [{}]}')
    with pytest.raises(SummaryError):
        html.write_report(run)
    assert not (run.path / "report.html").exists()
