"""``compare --runs``: the verdict on known answers, the studies that count, and every run that must be refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lumbar.errors import CohortError
from lumbar.labels import SEVERITY_COLUMNS, row_ids
from lumbar.metric import score_arrays
from lumbar_train.__main__ import main
from lumbar_train.data.folds import write_folds
from lumbar_train.data.tables import LABELS, Cohort, write_labels
from lumbar_train.ensemble.named_runs import named_runs
from lumbar_train.errors import LeakError
from lumbar_train.outputs.oof import write_seen
from run_answers import STUDIES, answers_of, labels_of, write_run

N = len(STUDIES)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Runs of one cohort on the same folds: ``good`` knows more than ``poor``, ``twin`` answers as ``good`` does."""
    for name, knowledge in (("poor", 0.2), ("good", 0.5), ("twin", 0.5)):
        write_run(tmp_path / name, knowledge)
    return tmp_path


def compare(capsys, *words) -> tuple[int, str, str]:
    status = main(["compare", "--runs", *map(str, words)])
    return status, *capsys.readouterr()


def test_a_better_a_worse_and_an_equal_run_are_called_so(runs, capsys, tmp_path):
    status, out, _ = compare(capsys, runs / "poor", runs / "good", runs / "twin", "--out", tmp_path / "page")
    assert status == 0
    *_, one, two, three, page = out.strip().splitlines()
    assert one.startswith("good is better than poor: -0.")
    assert two.startswith("twin is better than poor: -0.")
    assert three.startswith("twin and good cannot be told apart: +0.0000 in total (95 %: +0.0000 to +0.0000)")
    assert page == f"report: {tmp_path / 'page' / 'index.html'}"
    figures = json.loads((tmp_path / "page/figures.json").read_text())
    assert [entry["verdict"] for entry in figures["verdicts"]] == ["better", "better", "cannot be told apart"]
    wanted = score_arrays(labels_of(STUDIES).astype(int), answers_of(STUDIES, 0.5))
    assert figures["scores"]["good"]["total"][0] == pytest.approx(wanted.total)
    assert figures["scores"]["good"]["any_severe"][0] == pytest.approx(wanted.any_severe)
    assert "good is better than poor" in (tmp_path / "page/index.html").read_text()
    assert (
        compare(capsys, runs / "good", runs / "poor")[1].strip().splitlines()[-1].startswith("poor is worse than good")
    )


def test_a_study_that_one_run_lacks_is_left_out_of_all_and_counted(runs, capsys):
    write_run(runs / "good", 0.5, dropped=(3, 7))
    write_run(runs / "twin", 0.5, unanswered=(11,))
    status, out, _ = compare(capsys, runs / "poor", runs / "good", runs / "twin")
    assert status == 0
    assert f"out of fold: {N - 3} studies" in out
    assert "left out, as good has no answer: 2" in out
    assert "left out, as twin has no answer: 1" in out


def test_the_prior_beside_is_that_of_the_other_folds(runs, capsys, tmp_path):
    compare(capsys, runs / "poor", runs / "good", "--out", tmp_path / "page")
    labels, ids = labels_of(STUDIES), np.array(STUDIES)
    cohort = Cohort(tmp_path, "train", ids, labels, pd.DataFrame(), pd.DataFrame())
    prior = np.stack([cohort.prior(ids[ids % 2 != study % 2]) for study in ids])
    shown = json.loads((tmp_path / "page/figures.json").read_text())["scores"]["prior"]["total"][0]
    assert shown == pytest.approx(score_arrays(labels.astype(int), prior).total)


def moved_study(run: Path) -> None:
    """Everything of the run is consistent, but it held one study out in another fold."""
    write_run(run, 0.5, fold_of={study: (study + (study == 5)) % 2 for study in STUDIES})


def moved_row(run: Path) -> None:
    path = run / "axial_all/oof.parquet"
    frame = pd.read_parquet(path)
    frame.loc[frame["study_id"] == 5, "fold"] = 1 - frame.loc[frame["study_id"] == 5, "fold"]
    frame.to_parquet(path, index=False)


def full_fit(run: Path) -> None:
    path = run / "axial_all/oof.parquet"
    frame = pd.read_parquet(path)
    frame.assign(fold=frame["fold"].where(frame["study_id"] != 5, -1)).to_parquet(path, index=False)


def seen_study(run: Path) -> None:
    (run / "axial_all/fold1.safetensors").write_bytes(b"weights")
    write_seen(run / "axial_all/fold1.safetensors", 1, [study for study in STUDIES if study % 2 == 0 or study == 5])


def unreadable_note(run: Path) -> None:
    (run / "axial_all/fold1.seen.json").write_text("{}")


def study_twice(run: Path) -> None:
    folds = pd.read_csv(run / "folds.csv")
    pd.concat([folds, folds[:1].assign(fold=1 - folds["fold"][0])]).to_csv(run / "folds.csv", index=False)


def no_answers(run: Path) -> None:
    (run / "aggregator/oof.parquet").unlink()


def no_folds(run: Path) -> None:
    (run / "folds.csv").unlink()


def one_fold(run: Path) -> None:
    write_run(run, 0.5, unanswered=tuple(study for study in STUDIES if study % 2))


def stranger(run: Path) -> None:
    path = run / "aggregator/oof.parquet"
    frame = pd.read_parquet(path)
    more = frame[:25].assign(row_id=row_ids(999))
    pd.concat([frame, more]).to_parquet(path, index=False)


def other_cohort(run: Path) -> None:
    write_run(run, 0.5, studies=range(1000, 1040))


def half_other(run: Path) -> None:
    write_run(run, 0.5, studies=range(20, 60))


def other_cohort_of_the_same_numbers(run: Path) -> None:
    for path, fingerprint in ((run, "2" * 64), (run.parent / "poor", "1" * 64)):
        (path / "recipe.json").write_text(json.dumps({"cohort": fingerprint}))


def other_labels(run: Path) -> None:
    labels = labels_of(STUDIES)
    labels[4, 7] = (labels[4, 7] + 1) % 3
    ids = np.array(STUDIES)
    write_labels(run / LABELS, Cohort(run, "train", ids, labels, pd.DataFrame(), pd.DataFrame()))


def no_labels(run: Path) -> None:
    """Neither run has noted labels, as runs of older versions."""
    (run / LABELS).unlink()
    (run.parent / "poor" / LABELS).unlink()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (moved_study, "folds.csv: found study 5 in fold 0 (1 of 40 such), expected fold 1 as in poor: train with"),
        (moved_row, "axial_all/oof.parquet: study 5 was predicted by fold 0, but is held out in fold 1"),
        (full_fit, "holds outputs of a fit on all data, expected out-of-fold outputs alone"),
        (seen_study, "axial_all/fold1.seen.json: found study 5 among those that the network was fitted on (1 such)"),
        (unreadable_note, "fold1.seen.json: cannot be read, expected the studies that a network has seen"),
        (study_twice, "folds.csv: study 1 is in folds 0, 1, expected one"),
        (no_answers, "found no out-of-fold answers (aggregator/oof.parquet), expected a run with all its folds"),
        (no_folds, "found no folds.csv, expected a run folder, since the others are compared out of fold"),
        (one_fold, "found no answer for fold 1 (20 studies), expected all folds; train it with --folds 1 and --resume"),
        (stranger, "found study 999, which folds.csv does not name, expected none such"),
        (other_cohort, "good: found no study in common with poor, expected runs of one cohort"),
        (half_other, "good: found study 41, which poor does not have (19 such), and not 1 (19 such), expected runs of"),
        (other_cohort_of_the_same_numbers, "good/recipe.json: found a run of cohort 222222222222, expected 1111111111"),
        (other_labels, "labels.csv: found other labels of study 5 than in poor, expected the same; add --data ROOT"),
        (no_labels, "poor, good: found no labels of study 1 (40 such) in labels.csv, expected those of all; add"),
    ],
)  # fmt: skip
def test_runs_that_cannot_be_compared_are_refused_in_one_line(runs, capsys, spoil, said):
    spoil(runs / "good")
    status, out, errors = compare(capsys, runs / "poor", runs / "good")
    assert (status, out) == (1, "")
    assert said in errors
    assert errors.count("\n") == 1


def test_beside_an_ensemble_it_says_what_its_members_were_chosen_on(runs, capsys, tmp_path):
    (runs / "good/ensemble.json").write_text("{}")
    _, out, _ = compare(capsys, runs / "poor", runs / "good", "--out", tmp_path / "page")
    said = "good is an ensemble: its members were chosen on all studies"
    assert said in out
    assert "poor is an ensemble" not in out
    assert said in (tmp_path / "page/index.html").read_text()


def test_a_prior_that_out_of_fold_answers_would_not_be_shown_with_is_refused(runs, root, tmp_path, capsys):
    ids = [int(study) for study in pd.read_csv(root / "train.csv")["study_id"]]
    both = [write_run(tmp_path / name, 0.5, studies=ids) for name in "ab"]
    status, out, errors = compare(capsys, *both, "--data", root, "--prior", both[0])
    assert (status, out) == (1, "")
    assert "--prior" in errors
    assert "found runs that are compared out of fold, expected a cohort that none was trained on" in errors


def test_names_are_those_of_the_folders_or_as_given(runs):
    assert list(named_runs([str(runs / "good"), f"other={runs / 'poor'}"])) == ["good", "other"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["good"], "found 1, expected 2 or more"),
        (["good", "lost"], "lost: no such folder"),
        (["good", "good=poor"], "found two runs named good"),
        (["good", "again=good"], "twice (good and again), expected different runs"),
        (["good", "prior=poor"], "found name 'prior', expected letters"),
        (["good", "=poor"], "found name '', expected letters"),
    ],
)
def test_names_that_do_not_tell_runs_apart_are_refused(runs, monkeypatch, words, said):
    monkeypatch.chdir(runs)
    with pytest.raises(CohortError) as error:
        named_runs(words)
    assert said in str(error.value)


def test_submissions_are_compared_on_a_cohort_that_no_run_was_trained_on(root, tmp_path, capsys):
    ids = [int(study) for study in pd.read_csv(root / "train.csv")["study_id"]]
    for name, value in (("a", 0.4), ("b", 0.6)):
        frame = pd.DataFrame(
            np.tile([value, (1 - value) / 2, (1 - value) / 2], (25 * len(ids), 1)), columns=list(SEVERITY_COLUMNS)
        )
        frame.insert(0, "row_id", [row for study in ids for row in row_ids(study)])
        frame.to_csv(tmp_path / f"{name}.csv", index=False)
    status, out, errors = compare(capsys, tmp_path / "a.csv", tmp_path / "b.csv", "--data", root)
    assert (status, errors) == (0, "")
    assert f"{len(ids)} studies never trained on" in out
    assert "b is " in out or "b and a cannot be told apart" in out
    write_folds(tmp_path / "run/folds.csv", pd.DataFrame({"study_id": ids, "fold": [k % 2 for k in range(len(ids))]}))
    status, _, errors = compare(capsys, tmp_path / "run", tmp_path / "b.csv", "--data", root)
    assert status == 1
    assert "expected a run with all its folds" in errors
    write_run(tmp_path / "run", 0.5, studies=ids)
    status, _, errors = compare(capsys, tmp_path / "run", tmp_path / "b.csv", "--data", root)
    assert status == 1
    assert "b.csv: found a file, expected a run folder, since the others are compared out of fold" in errors


def test_a_leak_is_a_leak_error(runs):
    from lumbar_train.ensemble.compare import compare as compare_runs

    seen_study(runs / "good")
    with pytest.raises(LeakError):
        compare_runs({name: runs / name for name in ("poor", "good")}, None, "train")
