"""A run in three sessions, on copies that are read-only, leaves bit for bit what one session leaves."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shlex
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import train_tiny
from lumbar.io.arguments import python_word
from lumbar_train.engine import interrupts
from lumbar_train.stages import fitting

QUICK = [word for name in ("sagittal_z", "axial_xy", *("sagittal_classifier", "axial_subarticular", "axial_all"))
         for word in ("--set", f"{name}.epochs=1")]  # fmt: skip
CLOCK = ("seconds.json", "session.json", "taken_over.json", "log.csv", "fit.json", "weights_manifest.json")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    train_tiny.quick(monkeypatch)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def time_is_up_when(monkeypatch):
    """Time is up at the third look at the clock after something has happened; with it the fits that were begun."""

    def when(happened: Callable[[], bool], looks: int = 3) -> None:
        left = [looks]

        def clock() -> float:
            left[0] -= happened()
            return 1e12 if left[0] <= 0 else 0.0

        monkeypatch.setattr(interrupts, "clock", clock)

    return when


@pytest.fixture
def begun(monkeypatch) -> list[Path]:
    """The folders of the fits that were begun or gone on with, in this process."""
    folders: list[Path] = []
    real = fitting.fit

    def fit(*args, out_dir, **more):
        folders.append(Path(*out_dir.parts[-2:]))
        return real(*args, out_dir=out_dir, **more)

    monkeypatch.setattr(fitting, "fit", fit)
    return folders


def session_of(run: Path) -> dict:
    return json.loads((run / "session.json").read_text())


def contents(run: Path) -> dict[str, bytes]:
    """What a run has left, apart from what says how long it took; fits' folders hold the same weights once more."""
    paths = [path for path in run.rglob("*") if path.is_file() and path.name not in CLOCK]
    paths = [path for path in paths if path.relative_to(run).parts[0] != "cache"]
    return {str(path.relative_to(run)): path.read_bytes() for path in paths}


def read_only(folder: Path) -> Path:
    for path in [*folder.rglob("*"), folder]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    return folder


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def in_one_piece(tiny_cohort, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        train_tiny.quick(patch)
        assert train_tiny.train(tiny_cohort, run, *QUICK) == 0
    return run


def test_three_sessions_leave_bit_for_bit_what_one_leaves(
    in_one_piece, tiny_cohort, tiny_data, tmp_path, capsys, time_is_up_when, begun
):
    cache, first, second, third = (tmp_path / name for name in ("cache", "first", "second", "third"))
    # In the middle of the second fit of the first stage
    time_is_up_when(lambda: (first / "sagittal_xy/fold0/log.csv").exists())
    assert train_tiny.train(tiny_cohort, first, *QUICK, "--cache", str(cache), "--time-limit", "11.5h") == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(
        "time limit of 11.5h reached; fits left: sagittal_xy 2, sagittal_z 3, axial_xy 3, localise 2"
    )
    assert (
        f"go on with: {python_word()} -m lumbar_train train --data {shlex.quote(str(tiny_cohort))} --recipe tiny "
        f"--out {first}" in line
    )
    assert "--time-limit 11.5h" in line
    assert line.endswith("--resume")
    noted = session_of(first)
    assert (noted["status"], noted["sessions"], noted["left"]["sagittal_xy"]) == ("time limit", 1, 2)
    assert (first / "sagittal_xy/fold0/checkpoint.pt").is_file()

    # Another machine: the run is read-only input, data and cache lie elsewhere; ends within an out-of-fold pass
    source, before = read_only(first), stamps(first)
    time_is_up_when(lambda: (second / "localise/fold0.done.json").exists(), looks=4)
    more = ["--resume", str(source), "--cache", str(tmp_path / "other cache"), "--time-limit", "5000000"]
    assert train_tiny.train(tiny_data, second, *QUICK, *more) == 0
    assert stamps(first) == before
    assert begun[2] == Path("sagittal_xy/fold0")  # the first session began full and fold0, the second goes on
    assert session_of(second)["left"] == {
        "localise": 1, "sagittal_classifier": 3, "axial_subarticular": 3, "axial_all": 3, "aggregator": 1,
    }  # fmt: skip
    assert (second / "localise/pieces/levels.fold0.parquet").is_file()
    assert not (second / "localise/pieces/levels.fold1.parquet").exists()

    finished = {path: path.stat().st_mtime_ns for path in (second / "localise/pieces").glob("*.fold0.parquet")}
    shutil.move(second, third)
    begun.clear()
    assert train_tiny.train(tiny_data, third, *QUICK, "--cache", str(cache), "--resume") == 0
    assert {folder.parts[0] for folder in begun} == {"sagittal_classifier", "axial_subarticular", "axial_all"}
    for path, stamp in finished.items():
        assert (third / path.relative_to(second)).stat().st_mtime_ns == stamp  # a finished pass is not repeated
    assert (session_of(third)["status"], session_of(third)["left"], session_of(third)["sessions"]) == ("whole", {}, 3)
    one, three = contents(in_one_piece), contents(third)
    assert sorted(one) == sorted(three)
    assert [name for name in one if one[name] != three[name]] == []


@pytest.fixture
def time_is_up_in_both(monkeypatch, tmp_path):
    """Pools of processes that share this one's clock: time is up for two fits at the first step that both have made."""
    context, marks = multiprocessing.get_context("fork"), tmp_path / "marks"
    monkeypatch.setattr(multiprocessing, "get_context", lambda kind: context)
    marks.mkdir()

    def clock() -> float:
        if not interrupts._State.is_fitting:
            return 0.0
        (marks / str(os.getpid())).touch()
        deadline = time.monotonic() + 600
        while len(list(marks.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        return 1e12

    monkeypatch.setattr(interrupts, "clock", clock)


def test_two_fits_side_by_side_end_at_the_time_limit_and_go_on_to_the_same_weights(
    in_one_piece, tiny_cohort, tmp_path, capsys, time_is_up_in_both
):
    run, words = tmp_path / "run", [*QUICK, "--stages", "axial_xy", "--jobs", "2", "--time-limit", "60s"]
    assert train_tiny.train(tiny_cohort, run, *words) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    said = r"time limit of 60s reached; fits left: axial_xy 3; go on with: \S*python -m lumbar_train train"
    assert re.match(said, line)
    assert "--jobs 2" in line
    assert (session_of(run)["status"], session_of(run)["left"]) == ("time limit", {"axial_xy": 3})
    # The first two of the queue; the third did not begin
    assert {path.parent.name for path in run.glob("axial_xy/*/checkpoint.pt")} == {"full", "fold0"}
    assert not (run / "axial_xy/fold1").exists()
    assert len(list((tmp_path / "marks").iterdir())) == 2

    assert train_tiny.train(tiny_cohort, run, *QUICK, "--stages", "axial_xy", "--jobs", "2", "--resume") == 0
    assert (session_of(run)["status"], session_of(run)["sessions"]) == ("whole", 2)
    one, two = (
        {name: data for name, data in contents(folder).items() if name.startswith("axial_xy/")}
        for folder in (in_one_piece, run)
    )
    assert sorted(one) == sorted(two)
    assert [name for name in one if one[name] != two[name]] == []


def test_a_whole_run_is_not_repeated(in_one_piece, tiny_cohort, tmp_path, begun):
    run = shutil.copytree(in_one_piece, tmp_path / "run")
    before = {name: time for name, time in stamps(run).items() if "/report" not in name and "/export" not in name}
    assert train_tiny.train(tiny_cohort, run, *QUICK, "--resume") == 0
    assert begun == []
    after = stamps(run)
    assert [
        name for name in before if Path(name).suffix in (".safetensors", ".parquet") and after[name] != before[name]
    ] == []
    assert session_of(run)["status"] == "whole"


def test_a_limit_without_time_for_a_checkpoint_is_refused_in_one_line(tiny_cohort, tmp_path, capsys, time_is_up_when):
    run = tmp_path / "run"
    time_is_up_when(lambda: (run / "recipe.json").is_file(), looks=1)
    assert train_tiny.train(tiny_cohort, run, "--stages", "axial_xy", "--time-limit", "90s") == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("lumbar_train: --time-limit: found 90s, in which no fit came to a checkpoint")
    assert session_of(run)["status"] == "time limit"
    assert session_of(run)["left"] == {"axial_xy": 3}


@pytest.mark.parametrize(
    ("words", "said", "keeps"),
    [
        (("--set", "axial_all.epochs=2"), "axial_all was trained with epochs 1, found 2 now", "axial_all.epochs=1"),
        (
            ("--set", "axial_all.turn_deg=30"),
            "axial_all was trained with augment.turn_deg 3.0, found 30.0 now",
            "axial_all.augment.turn_deg=3.0",
        ),
        (("--set", "axial_all.hidden=16"), "axial_all was trained with hidden 8, found 16", "axial_all.hidden=8"),
        (("--set", "axial_all.mixup=0.5"), "axial_all was trained with mixing 'none', found 'some' now", ""),
        (("--set", "recipe.denoise=on"), "was trained with denoise 'none', found 'some' now", "recipe.denoise=off"),
        (("--seed", "7"), "the run was trained with --seed 0, found 7 now", ""),
        (("--recipe", "demo"), "was trained with recipe 'tiny', found 'demo' now", ""),
    ],
)
def test_a_recipe_that_was_changed_between_sessions_is_refused_before_anything_is_copied(
    in_one_piece, tiny_cohort, tmp_path, capsys, words, said, keeps
):
    assert train_tiny.train(tiny_cohort, tmp_path / "out", *QUICK, *words, "--resume", str(in_one_piece)) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert said in line
    assert (f"(here --set {keeps})" in line) if keeps else ("(here" not in line)
    assert not (tmp_path / "out").exists()


def test_a_stage_that_was_asked_for_and_has_not_begun_stays_what_it_was(tiny_cohort, tmp_path, capsys, time_is_up_when):
    run = tmp_path / "run"
    time_is_up_when(lambda: (run / "recipe.json").is_file(), looks=1)
    assert train_tiny.train(tiny_cohort, run, "--stages", "axial_xy", "--time-limit", "90s") == 1
    for words, said in (("lr=1", "lr 0.003, found 1.0"), ("mm_per_px=4", "mm_per_px 5.0, found 4.0")):
        again = ("--stages", "axial_xy", "--resume", "--set", f"axial_xy.{words}")
        assert train_tiny.train(tiny_cohort, run, *again) == 1
        assert f"axial_xy was trained with {said}" in capsys.readouterr().err.splitlines()[-1]


def test_a_run_of_another_cohort_is_refused(in_one_piece, tiny_data, tmp_path, capsys):
    table = (tiny_data / "train.csv").read_text().replace("Severe", "Moderate", 1)
    (tiny_data / "train.csv").unlink()  # it is a link
    (tiny_data / "train.csv").write_text(table)
    assert train_tiny.train(tiny_data, tmp_path / "out", *QUICK, "--resume", str(in_one_piece)) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "the run was trained with the cohort's fingerprint" in line
    assert not (tmp_path / "out").exists()


def test_what_rests_on_a_stage_that_was_fitted_anew_is_not_exported_until_it_is_made_anew(
    in_one_piece, tiny_cohort, tmp_path, capsys
):
    run = shutil.copytree(in_one_piece, tmp_path / "run")
    exported = {path: path.read_bytes() for path in (run / "export").rglob("*.*")}
    anew = (*QUICK, "--set", "axial_all.epochs=2")
    assert train_tiny.train(tiny_cohort, run, *anew, "--stages", "axial_all", "--overwrite") == 0
    said = capsys.readouterr().out
    assert "nothing is exported or reported: what aggregator began from was made anew since; go on with: " in said
    assert "weights to seal" not in said
    assert {path: path.read_bytes() for path in (run / "export").rglob("*.*")} == exported
    assert train_tiny.train(tiny_cohort, run, *anew, "--resume") == 0
    assert "weights to seal" in capsys.readouterr().out
    changed = {path.name.partition(".")[0] for path, data in exported.items() if path.read_bytes() != data}
    assert {"axial_all", "weights_manifest"} <= changed <= {"axial_all", "aggregator", "weights_manifest"}


# Other weights to start from, other fits that ship


def test_fold_weights_ship_without_further_training(in_one_piece, tiny_cohort, tmp_path, begun):
    run = shutil.copytree(in_one_piece, tmp_path / "run", ignore=shutil.ignore_patterns("report", "export"))
    assert train_tiny.train(tiny_cohort, run, *QUICK, "--resume", "--ship", "folds") == 0
    assert begun == []
    manifest = json.loads((run / "export/weights_manifest.json").read_text())
    assert [entry["fold"] for entry in manifest["weights"] if entry["stage"] == "axial_all"] == [0, 1]


def test_fits_start_from_another_run_where_shapes_agree(in_one_piece, tiny_cohort, tmp_path, capsys):
    run = tmp_path / "run"
    some = ["--stages", "axial_xy,sagittal_classifier", "--folds", "0,1", "--set", "*.epochs=1", "--set", "*.lr=1e-12"]
    for name in ("localise", "sagittal_xy"):
        shutil.copytree(in_one_piece / name, run / name)
    shutil.copy(in_one_piece / "folds.csv", run)
    more = ["--set", "sagittal_classifier.hidden=16", "--init", str(in_one_piece), "--overwrite"]
    assert train_tiny.train(tiny_cohort, run, *some, *more) == 0
    said = capsys.readouterr().out
    assert f"--init: axial_xy starts from {in_one_piece}/axial_xy: " in said
    assert "--init: sagittal_classifier starts from" in said
    assert "; not " in said
    assert ", here (" in said
    theirs, ours = (load_file(folder / "axial_xy/fold0.safetensors") for folder in (in_one_piece, run))
    assert all(torch.allclose(theirs[name].float(), ours[name].float(), atol=1e-6) for name in ours)
    assert json.loads((run / "recipe.json").read_text())["init"]["run"] == str(in_one_piece)
    assert train_tiny.train(tiny_cohort, run, *some, *more[:-1], "--resume") == 0  # also when no fit is left to begin


def test_weights_that_have_seen_the_held_out_studies_are_no_start(in_one_piece, tiny_cohort, tmp_path, capsys):
    table = (in_one_piece / "folds.csv").read_text().splitlines()
    halves = [f"{line.split(',')[0]},{k % 2}" for k, line in enumerate(sorted(table[1:], key=lambda x: x[-1]))]
    (tmp_path / "folds.csv").write_text("\n".join([table[0], *halves]) + "\n")
    more = ["--fold-file", str(tmp_path / "folds.csv"), "--init", str(in_one_piece), "--stages", "axial_xy"]
    assert train_tiny.train(tiny_cohort, tmp_path / "run", *more) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "has seen study" in line
    assert "which fold0 holds out" in line
    assert "--fold-file" in line
    assert not (tmp_path / "run/axial_xy").exists()


def test_what_the_weights_have_seen_before_is_noted_of_a_fit_that_starts_from_them(in_one_piece, tiny_cohort, tmp_path):
    before, run = shutil.copytree(in_one_piece / "axial_xy", tmp_path / "before/axial_xy").parent, tmp_path / "run"
    for path in before.glob("axial_xy/*.seen.json"):
        note = json.loads(path.read_text())
        path.write_text(json.dumps(note | {"studies": [*note["studies"], 999]}))
    shutil.copy(in_one_piece / "folds.csv", tmp_path)
    words = ["--fold-file", str(tmp_path / "folds.csv"), "--stages", "axial_xy", "--folds", "0", "--set", "*.epochs=1"]
    assert train_tiny.train(tiny_cohort, run, *words, "--init", str(before)) == 0
    ours, theirs = (json.loads((folder / "axial_xy/fold0.seen.json").read_text()) for folder in (run, before))
    assert ours["studies"] == sorted(theirs["studies"])
    assert 999 in ours["studies"]


@pytest.fixture
def bundle_of(in_one_piece, tmp_path):
    """A bundle of the tiny run, said to be made from synthetic studies or from others."""

    def make(description: str) -> Path:
        bundle = shutil.copytree(in_one_piece / "export", tmp_path / "bundle")
        manifest = json.loads((bundle / "weights_manifest.json").read_text())
        manifest["cohort"]["description"] = description
        (bundle / "weights_manifest.json").write_text(json.dumps(manifest))
        return bundle

    return make


def test_fits_of_real_studies_start_from_a_bundle_of_phantoms(bundle_of, tiny_cohort, tmp_path, capsys):
    bundle, run = bundle_of("synthetic"), tmp_path / "run"
    words = ["--stages", "axial_xy", "--folds", "0,full", "--set", "*.epochs=1", "--set", "*.lr=1e-12"]
    assert train_tiny.train(tiny_cohort, run, *words, "--init", str(bundle)) == 0
    assert f"--init: axial_xy starts from {bundle}: " in capsys.readouterr().out
    theirs = load_file(bundle / "weights/axial_xy.full.safetensors")
    for fold in ("fold0", "full"):
        ours = load_file(run / f"axial_xy/{fold}.safetensors")
        assert all(torch.allclose(theirs[name].float(), ours[name].float(), atol=1e-3) for name in ours)
    rows = [line.split(",") for line in (run / "folds.csv").read_text().splitlines()[1:]]
    seen = json.loads((run / "axial_xy/fold0.seen.json").read_text())["studies"]
    assert sorted(seen) == sorted(int(study) for study, fold in rows if fold != "0")


def test_a_bundle_that_may_have_seen_the_studies_is_no_start(bundle_of, tiny_cohort, tmp_path, capsys):
    bundle, run = bundle_of("competition"), tmp_path / "run"
    assert train_tiny.train(tiny_cohort, run, "--stages", "axial_xy", "--init", str(bundle)) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"--init {bundle}: found a bundle (recipe tiny, trained on 8 studies (competition)), which does not" in line
    assert "expected the folder of its run, or weights of phantoms for studies that are none" in line


def test_a_bundle_of_phantoms_is_no_start_for_phantoms(bundle_of, tiny_cohort, tmp_path, capsys):
    synthetic = shutil.copytree(tiny_cohort, tmp_path / "synthetic")
    (synthetic / "truth.parquet").touch()
    words = ["--stages", "axial_xy", "--init", str(bundle_of("synthetic"))]
    assert train_tiny.train(synthetic, tmp_path / "run", *words) == 1
    assert "which does not tell the studies that it has seen" in capsys.readouterr().err.splitlines()[-1]


def test_a_bundle_with_another_file_than_its_manifest_lists_is_no_start(bundle_of, tiny_cohort, tmp_path, capsys):
    bundle = bundle_of("synthetic")
    weights = bundle / "weights/axial_xy.full.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    assert train_tiny.train(tiny_cohort, tmp_path / "run", "--stages", "axial_xy", "--init", str(bundle)) == 1
    assert f"--init {weights}: found another file, expected what" in capsys.readouterr().err.splitlines()[-1]
    weights.unlink()
    assert train_tiny.train(tiny_cohort, tmp_path / "run", "--stages", "axial_xy", "--init", str(bundle)) == 1
    assert f"--init {weights}: found no file" in capsys.readouterr().err.splitlines()[-1]


def test_a_folder_without_weights_is_no_start(tiny_cohort, tmp_path, capsys):
    assert train_tiny.train(tiny_cohort, tmp_path / "run", "--stages", "axial_xy", "--init", str(tmp_path)) == 1
    said = f"--init {tmp_path}: found no weights, expected a folder that a training has left, or a sealed bundle"
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_a_run_of_which_nothing_agrees_is_no_start(in_one_piece, tiny_cohort, tmp_path, capsys):
    other = shutil.copytree(in_one_piece, tmp_path / "other", ignore=shutil.ignore_patterns("axial_xy", "cache"))
    assert train_tiny.train(tiny_cohort, tmp_path / "run", "--stages", "axial_xy", "--init", str(other)) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"--init {other}: found a run of recipe tiny of which no stage agrees in a tensor" in line
