"""``--resume FROM``: a run of another folder is copied whole or not at all, and two runs are never mixed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from lumbar.errors import CohortError
from lumbar_train.outputs import take_over as module
from lumbar_train.outputs.run_lock import RunLock
from lumbar_train.outputs.session import Session, check_version
from lumbar_train.outputs.take_over import MARK, check_source, check_whole, take_over


def a_run(folder: Path, *, sessions: int = 1, name: str = "tiny") -> Path:
    """As far as a copy looks at it: notes, a finished fit, one with a checkpoint, tables; and what stays behind."""
    files = {
        "recipe.json": json.dumps({"name": name, "stages": {}}),
        "folds.csv": "study_id,fold\n1,0\n",
        "axial_xy/full.safetensors": "weights",
        "axial_xy/full/fit.json": "{}",
        "axial_xy/fold0/checkpoint.pt": "state",
        "localise/pieces/levels.fold0.parquet": "rows",
        "cache/objects/ab/slices.bin": "much",
        "decoded/objects/ab/slices.bin": "much",
        "export/weights_manifest.json": "{}",
        "report/index.html": "page",
        ".tmp-x": "half",
    }
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    for _ in range(sessions):
        Session.begin(folder, [], {"axial_xy": 1}, 0.0).write("time limit")
    return folder


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


KEPT = {
    "recipe.json", "folds.csv", "session.json", "axial_xy/full.safetensors", "axial_xy/full/fit.json",
    "axial_xy/fold0/checkpoint.pt", "localise/pieces/levels.fold0.parquet", MARK,
}  # fmt: skip


def test_what_belongs_to_the_run_is_copied_and_decoded_studies_stay(tmp_path):
    source = a_run(tmp_path / "from")
    before = {path: path.stat().st_mtime_ns for path in source.rglob("*")}
    assert take_over(source, tmp_path / "out") == len(KEPT) - 1
    assert names(tmp_path / "out") == KEPT
    assert {path: path.stat().st_mtime_ns for path in source.rglob("*")} == before
    (tmp_path / "out/axial_xy/fold0/checkpoint.pt").write_text("further")
    assert take_over(source, tmp_path / "out") == 0  # the same command once more goes on with what is there
    assert (tmp_path / "out/axial_xy/fold0/checkpoint.pt").read_text() == "further"


def test_names_of_one_file_stay_names_of_one(tmp_path):
    source = a_run(tmp_path / "from")
    (source / "axial_xy/full/last.safetensors").hardlink_to(source / "axial_xy/full.safetensors")
    take_over(source, tmp_path / "out")
    assert os.path.samefile(tmp_path / "out/axial_xy/full/last.safetensors", tmp_path / "out/axial_xy/full.safetensors")


def test_a_copy_that_was_interrupted_is_completed_and_not_trained_on_before(tmp_path, monkeypatch):
    source, real = a_run(tmp_path / "from"), module._copy

    def stop(path, target, linked):
        if path.name == "fit.json":
            raise KeyboardInterrupt
        real(path, target, linked)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_copy", stop)
        with pytest.raises(KeyboardInterrupt):
            take_over(source, tmp_path / "out")
    with pytest.raises(CohortError, match=r"taken over in part, expected all of it; give --resume .*from again"):
        check_whole(tmp_path / "out")
    take_over(source, tmp_path / "out")
    check_whole(tmp_path / "out")
    assert names(tmp_path / "out") == KEPT


def test_what_cannot_be_taken_over_is_refused(tmp_path):
    source = a_run(tmp_path / "from")
    (tmp_path / "empty").mkdir()
    for wrong, out, message in (
        (tmp_path / "nowhere", tmp_path / "out", "no such folder, expected a run folder"),
        (source / "recipe.json", tmp_path / "out", "found a file, expected a run folder"),
        (tmp_path / "empty", tmp_path / "out", "found no run, expected a folder that a training has left"),
        (source, source / "next", "expected a folder outside what --resume only reads"),
        (source, a_run(tmp_path / "other"), "found another run, expected an empty folder"),
    ):
        with pytest.raises(CohortError, match=message):
            check_source(wrong, out)
    check_source(source, source)  # the folder itself: as --resume alone
    with RunLock(source, resume=True), pytest.raises(CohortError, match="found it in use by process"):
        check_source(source, tmp_path / "out")


def test_a_source_that_is_further_on_is_not_ignored(tmp_path):
    source = a_run(tmp_path / "from")
    take_over(source, tmp_path / "out")
    Session.begin(source, [], {}, 0.0).write("whole")
    with pytest.raises(CohortError, match="after 1 sessions, expected no less than the 2 of"):
        take_over(source, tmp_path / "out")


@pytest.mark.parametrize("content", [{"schema": 2}, {"lumbar": "99.0.1"}, {"schema": "two"}, {"lumbar": "new"}])
@pytest.mark.parametrize("name", ["session.json", "recipe.json"])
def test_a_run_of_a_newer_version_is_refused(tmp_path, name, content):
    run = a_run(tmp_path / "run")
    check_version(run)
    (run / name).write_text(json.dumps(json.loads((run / name).read_text()) | content))
    with pytest.raises(CohortError, match=rf"{name}: found a run of lumbar .*, expected one of"):
        check_version(run)


def test_sessions_and_their_time_add_up(tmp_path):
    run = a_run(tmp_path / "run", sessions=2)
    path = run / "session.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"elapsed_s": 50.0}))
    session = Session.begin(run, [], {"axial_xy": 2, "localise": 1}, 0.0)
    for stage in ("axial_xy", "localise"):
        session.finished(stage)
    noted = json.loads(path.read_text())
    assert (noted["sessions"], noted["status"], noted["left"]) == (3, "interrupted", {"axial_xy": 1})  # until it ends
    assert noted["elapsed_s"] == pytest.approx(50.0 + noted["session_s"], abs=0.2)
    assert noted["run"] == content["run"]
