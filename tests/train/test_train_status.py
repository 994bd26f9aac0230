"""``train --status``: where a run stands, read from its folder alone."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from lumbar.errors import CohortError
from lumbar_train.__main__ import main
from lumbar_train.outputs.run_lock import RunLock
from lumbar_train.outputs.session import Session
from lumbar_train.outputs.status import status_lines
from lumbar_train.outputs.take_over import take_over

FOLDS = ("full", "fold0", "fold1")


@pytest.fixture
def run(tmp_path) -> Path:
    """Two fits of axial_xy are done and one has begun; localise has one fold, axial_all nothing."""
    folder = tmp_path / "run"
    fits = {
        stage: {name: [{"folder": f"{stage}/{name}", "epochs": 4}] for name in FOLDS}
        for stage in ("axial_xy", "axial_all")
    }
    plan = [
        {"stage": "axial_xy", "folds": fits["axial_xy"]},
        {"stage": "localise", "folds": {"fold0": [], "fold1": []}},
        {"stage": "axial_all", "folds": fits["axial_all"]},
    ]
    for name in FOLDS[:2]:
        (folder / "axial_xy" / name).mkdir(parents=True)
        (folder / f"axial_xy/{name}/fit.json").write_text(json.dumps({"seconds": 3600.0}))
        (folder / f"axial_xy/{name}.done.json").write_text("{}")
    (folder / "axial_xy/fold1").mkdir()
    (folder / "axial_xy/fold1/log.csv").write_text("epoch,loss,seconds\n0,0.5,700.0\n1,0.4,1800.0\n")
    (folder / "localise").mkdir()
    (folder / "localise/fold0.done.json").write_text("{}")
    stages = {name: {"fit": {"epochs": 4}} for name in ("axial_xy", "axial_all")}
    (folder / "recipe.json").write_text(json.dumps({"name": "model2", "stages": stages}))
    (folder / "folds.csv").write_text("study_id,fold\n7,0\n8,1\n")
    Session.begin(folder, plan, {"axial_xy": 1}, 0.0).write("time limit")
    return folder


def test_a_line_a_stage_says_what_is_done_begun_and_left(run):
    title, head, axial_xy, localise, axial_all, whole, *more = status_lines(run)
    assert title == f"{run}: recipe model2, 1 session, ended by its time limit"
    assert head.split() == ["stage", "folds", "epochs", "h", "spent", "h", "left", "folds"]
    assert axial_xy.split(maxsplit=9) == ["axial_xy", "2", "of", "3", "10", "of", "12", "2.50", "0.50",
                                          "done full, fold0; begun fold1 2/4"]  # fmt: skip
    assert localise.split(maxsplit=7) == ["localise", "1", "of", "2", "-", "-", "-", "done fold0; left fold1"]
    assert axial_all.endswith("0.00        ?  left full, fold0, fold1")
    assert whole.split() == ["whole", "3", "of", "8", "10", "of", "24", "2.50", "0.50"]
    assert more[0] == "hours left do not count 1 stage without an epoch yet"


def test_only_what_was_asked_for_is_counted(run):
    """Calls with --stages and --folds: folds and stages that none of them named are neither left nor counted."""
    noted = json.loads((run / "session.json").read_text())
    Session.begin(run, noted["plan"], {}, 0.0, {"axial_xy": ["fold0"]})
    Session.begin(run, noted["plan"], {}, 0.0, {"axial_xy": ["fold0", "fold1"], "localise": ["fold0"]})
    _, _, axial_xy, localise, whole, *more = status_lines(run)
    assert axial_xy.split()[:7] == ["axial_xy", "1", "of", "2", "6", "of", "8"]
    assert localise.split(maxsplit=7)[1:] == ["1", "of", "1", "-", "-", "-", "done fold0"]
    assert whole.split()[:7] == ["whole", "2", "of", "3", "6", "of", "8"]
    assert more[-1] == "stages of the recipe that no call has asked for: axial_all"


def test_hours_left_are_unknown_before_any_epoch(run):
    for path in run.glob("axial_xy/*/*"):
        path.unlink()
    for path in run.glob("axial_xy/*.done.json"):
        path.unlink()
    assert status_lines(run)[5].split() == ["whole", "1", "of", "8", "0", "of", "24", "0.00", "?"]


def test_a_note_of_stages_alone_asks_for_all_their_folds(run):
    """As earlier versions wrote it."""
    path = run / "session.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"asked": ["axial_xy"]}))
    assert status_lines(run)[2].split()[:4] == ["axial_xy", "2", "of", "3"]
    assert status_lines(run)[3].startswith("whole")


def test_a_run_of_before_the_account_was_kept_is_read_too(run):
    (run / "session.json").unlink()
    lines = status_lines(run)
    assert lines[0] == f"{run}: recipe model2"
    assert "10 of 12" in lines[2]


def test_damaged_notes_count_as_nothing_done(run):
    (run / "axial_xy/fold0/fit.json").write_text("{")
    (run / "axial_xy/fold1/log.csv").write_text("epoch,seconds\n0,much\n")
    assert "8 of 12" in status_lines(run)[2]  # a fold that is done counts, whatever its log says


def test_a_stage_does_not_count_as_done_where_an_earlier_one_was_fitted_anew(run):
    axial, localise = run / "axial_xy/fold0.done.json", run / "localise/fold0.done.json"
    axial.write_text(json.dumps({"left": {"fold0.safetensors": "1"}, "from": {"seed": 0}}))
    localise.write_text(json.dumps({"left": {"points": "2"}, "from": {"axial_xy/fold0": {"fold0.safetensors": "1"}}}))
    assert status_lines(run)[3].endswith("done fold0; left fold1")
    axial.write_text(json.dumps({"left": {"fold0.safetensors": "3"}, "from": {"seed": 0}}))
    assert status_lines(run)[3].endswith("  left fold0, fold1")


def test_the_command_needs_nothing_but_the_folder(run, tmp_path, capsys):
    assert main(["train", "--status", str(run)]) == 0
    assert "axial_all" in capsys.readouterr().out
    assert main(["train", "--status", str(tmp_path / "nowhere")]) == 1
    assert "--status" in capsys.readouterr().err
    with pytest.raises(CohortError, match="found no run"):
        status_lines(run / "localise")
    with pytest.raises(SystemExit):
        main(["train"])
    assert "the following arguments are required: --data, --out" in capsys.readouterr().err


def note(run: Path, **values) -> None:
    """Change what the run's file says."""
    (run / "session.json").write_text(json.dumps(json.loads((run / "session.json").read_text()) | values))


def account(run: Path) -> str:
    """The last line, of all sessions together."""
    return status_lines(run)[-1].removeprefix("all sessions together took ")


def test_the_account_includes_the_session_that_runs(run):
    """``session.json`` is written at each finished stage; what a fit did since counts too."""
    now = time.time()
    with RunLock(run, resume=True):
        os.utime(run / "run.lock", (now - 3600.0, now - 3600.0))
        note(run, elapsed_s=108.0, status="interrupted", noted_at=now - 1800.0)
        assert account(run).startswith("0.53 h, the running one,")


def test_the_time_between_two_sessions_is_not_counted(run):
    """The next day's call has its lock, and has not written its first note: the file is yesterday's."""
    yesterday = time.time() - 24 * 3600.0
    note(run, elapsed_s=7200.0, noted_at=yesterday)
    os.utime(run / "session.json", (yesterday, yesterday))
    with RunLock(run, resume=True):
        assert account(run).startswith("2.00 h, the running one,")
        an_hour_ago = time.time() - 3600.0
        os.utime(run / "run.lock", (an_hour_ago, an_hour_ago))
        assert account(run).startswith("3.00 h, the running one,")
    assert account(run).startswith("2.00 h, predictions")


def test_what_a_killed_session_did_since_its_last_note_is_counted_also_in_a_copy(run, tmp_path):
    """The seconds stand in the logs; the files of a copy have the time of copying."""
    note(run, elapsed_s=108.0, status="interrupted")
    with (run / "axial_xy/fold1/log.csv").open("a") as log:
        log.write("2,0.3,2520.0\n")
    (run / "axial_all/fold0").mkdir(parents=True)
    (run / "axial_all/fold0/log.csv").write_text("epoch,loss,seconds\n0,0.5,600.0\n")  # beside it
    copy = tmp_path / "copy"
    take_over(run, copy)
    later = time.time() + 9 * 3600.0
    for path in copy.rglob("*.csv"):
        os.utime(path, (later, later))
    assert account(run).startswith("0.23 h, predictions")
    assert account(copy).startswith("0.23 h, predictions")
    Session.begin(copy, [], {}, time.monotonic())
    assert json.loads((copy / "session.json").read_text())["elapsed_s"] == pytest.approx(828.0, abs=1.0)
    assert account(copy).startswith("0.23 h, predictions"), "each second counts once"


def test_notes_that_are_no_numbers_do_not_spoil_the_account(run):
    note(run, elapsed_s=3600.0, status="interrupted", noted_at="noon", spent_s=["?"])
    assert account(run).startswith("1.00 h, predictions")
    note(run, elapsed_s="long")
    assert "all sessions together" not in status_lines(run)[-1]
