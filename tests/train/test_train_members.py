"""The logits of several runs joined: what is masked, what is counted, and every leak that must be refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lumbar.errors import CohortError, LumbarError
from lumbar_train.data.folds import FULL
from lumbar_train.data.tables import Cohort
from lumbar_train.ensemble.build import Ensemble
from lumbar_train.ensemble.members import gather, member_name
from lumbar_train.ensemble.selection import keeping, select
from lumbar_train.errors import LeakError
from lumbar_train.outputs.oof import write_seen
from run_answers import STUDIES, answers_of, labels_of, write_run


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Path]:
    return {name: write_run(tmp_path / name, knowledge) for name, knowledge in (("a", 0.3), ("b-2", 0.5))}


def test_members_are_the_classifiers_of_all_runs_with_their_own_logits(runs):
    joined = gather(runs)
    assert joined.members.names == ("a_axial_all", "b_2_axial_all")
    assert joined.left_out == {}
    np.testing.assert_array_equal(joined.members.labels, labels_of(STUDIES))
    logits = np.log(answers_of(STUDIES, 0.5)).reshape(-1, 5, 5, 3)
    np.testing.assert_allclose(joined.members.logits[:, 1], logits, atol=1e-6)
    assert joined.members.folds.tolist() == [study % 2 for study in STUDIES]
    assert len(set(select(joined.members, most=3).picks)) == 1  # both know all, so that a second one adds nothing


def test_a_study_that_one_run_dropped_is_masked_in_its_members_and_counted(runs):
    write_run(runs["a"], 0.3, dropped=(4, 9))
    joined = gather(runs)
    assert joined.left_out == {"a": 2}
    gone = np.isin(np.array(STUDIES), (4, 9))
    assert not joined.members.mask[gone, 0].any()
    assert joined.members.mask[~gone, 0].all()
    assert joined.members.mask[:, 1].all()


def test_a_run_of_which_a_stage_was_fitted_anew_after_its_export_is_refused(runs):
    """The logits of its classifier would be those of other networks than the ones that ship."""
    notes = {
        "aggregator/full": {"from": {"axial_all/fold0": {"a": "1"}, "seed": 0}},
        "axial_all/fold0": {"left": {"a": "1"}},
    }
    for name, note in notes.items():
        path = runs["a"] / f"{name}.done.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(note))
    gather(runs)
    (runs["a"] / "axial_all/fold0.done.json").write_text('{"left": {"a": "2"}}')
    with pytest.raises(CohortError, match=r"found axial_all \(fold0\) made anew after the aggregator, expected a run"):
        gather(runs)


def as_external(run: Path) -> None:
    """A folder with nothing but a table of logits, as another team's model gives."""
    (run / "axial_all/oof.parquet").rename(run / "oof.parquet")
    for name in ("folds.csv", "labels.csv", "dropped.json"):
        (run / name).unlink()
    (run / "axial_all").rmdir()


def test_an_external_models_table_of_logits_is_a_member(runs):
    as_external(runs["b-2"])
    joined = gather(runs)
    assert joined.members.names == ("a_axial_all", "b_2")
    assert joined.sources[1].classifier == ""


def change(run: Path, **columns) -> None:
    path = run / "axial_all/oof.parquet"
    frame = pd.read_parquet(path)
    for name, value in columns.items():
        frame.loc[frame["study_id"] == 5, name] = value
    frame.to_parquet(path, index=False)


def moved_study(run: Path) -> None:
    write_run(run, 0.5, fold_of={study: (study + (study == 5)) % 2 for study in STUDIES})


def moved_external(run: Path) -> None:
    moved_study(run)
    as_external(run)


def row_of_another_fold(run: Path) -> None:
    change(run, fold=0)


def row_of_a_full_fit(run: Path) -> None:
    change(run, fold=-1)


def seen_study(run: Path) -> None:
    (run / "axial_all/fold1.safetensors").write_bytes(b"weights")
    write_seen(run / "axial_all/fold1.safetensors", 1, [2, 4, 5])


def logits_of_a_network_that_has_seen_the_study(run: Path) -> None:
    """The table was changed after the fold's own pass, which lies beside it."""
    table = run / "axial_all/oof.parquet"
    frame = pd.read_parquet(table)
    (run / "axial_all/pieces").mkdir()
    for fold in (0, 1):
        frame[frame["fold"] == fold].to_parquet(run / f"axial_all/pieces/oof.fold{fold}.parquet", index=False)
    change(run, logit_severe=9.0)


def row_twice(run: Path) -> None:
    path = run / "axial_all/oof.parquet"
    frame = pd.read_parquet(path)
    pd.concat([frame, frame[:1]]).to_parquet(path, index=False)


def other_cohort_of_the_same_numbers(run: Path) -> None:
    (run.parent / "a/recipe.json").write_text(json.dumps({"cohort": "1" * 64, "points": None}))
    (run / "recipe.json").write_text(json.dumps({"cohort": "2" * 64}))


def no_number(run: Path) -> None:
    change(run, logit_severe=np.nan)


def no_logits(run: Path) -> None:
    (run / "axial_all/oof.parquet").unlink()


def no_classifier(run: Path) -> None:
    no_logits(run)
    (run / "axial_all").rmdir()


def other_cohort(run: Path) -> None:
    write_run(run, 0.5, studies=range(900, 940))


@pytest.mark.parametrize(
    ("spoil", "kind", "said"),
    [
        (moved_study, LeakError, "found study 5 in fold 0 (1 of 40 such), expected fold 1 as in a: train with"),
        (moved_external, LeakError, "found study 5 in fold 0 (1 of 40 such), expected fold 1 as in a"),
        (row_of_another_fold, LeakError, "study 5 was predicted by fold 0, but is held out in fold 1"),
        (row_of_a_full_fit, LeakError, "holds outputs of a fit on all data"),
        (seen_study, LeakError, "fold1.seen.json: found study 5 among those that the network was fitted on"),
        (
            logits_of_a_network_that_has_seen_the_study,
            LeakError,
            "found logits of study 5 that its fold's own pass did",
        ),
        (row_twice, CohortError, "found study 1, spinal_canal_stenosis l1_l2 twice, expected once"),
        (no_number, CohortError, "found logits of study 5 that are no numbers (1 such studies)"),
        (no_logits, CohortError, "axial_all: found no oof.parquet, expected out-of-fold logits; train its folds"),
        (no_classifier, CohortError, "found no classifier and no oof.parquet with study_id, fold, condition"),
        (
            other_cohort_of_the_same_numbers,
            CohortError,
            "b-2/recipe.json: found a run of cohort 222222222222, expected 111111111111, the cohort of a",
        ),
        (other_cohort, CohortError, "b-2: found no study in common with a, expected runs of one cohort"),
    ],
)
def test_a_leak_or_a_member_without_logits_is_refused_in_one_line(runs, spoil, kind, said):
    spoil(runs["b-2"])
    with pytest.raises(LumbarError) as error:
        gather(runs)
    assert type(error.value) is kind
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_two_runs_whose_members_would_have_one_name_are_refused(runs):
    with pytest.raises(CohortError, match="two members named b_2_axial_all, expected different names"):
        gather({"b-2": runs["b-2"], "B 2": runs["a"]})


@pytest.mark.parametrize(("run", "name"), [("Run-7", "run_7"), ("7x", "run_7x"), ("..", "run"), ("é", "run")])
def test_member_names_are_what_a_bundle_takes(run, name):
    assert member_name(run) == name
    assert member_name(run, "axial_all") == f"{name}_axial_all"


def test_long_names_are_cut_to_what_a_bundle_takes_and_stay_apart():
    """Also of an ensemble's members that are joined again, whose names are long already."""
    runs = [f"{'a-rather-long-name-of-a-run-' * 2}{k}-with-more-behind-it" for k in range(3)]
    names = [member_name(run, "axial_subarticular") for run in runs]
    names += [member_name("both", name) for name in names] + [member_name(run) for run in runs]
    names += [member_name("both", f"{'x' * 50}_{k}") for k in range(2)]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z][a-z0-9_]{0,63}", name) for name in names)
    assert all(name.endswith("_axial_subarticular") for name in names[:6])


def test_members_are_those_of_the_cohort_that_is_given(runs, tmp_path):
    """A run with external points has a fingerprint of its own, and is not judged by it."""
    ids = np.array(STUDIES)
    cohort = Cohort(tmp_path, "train", ids, labels_of(STUDIES), pd.DataFrame(), pd.DataFrame(), fingerprint="1" * 64)
    (runs["a"] / "recipe.json").write_text(json.dumps({"cohort": "2" * 64, "points": "beside"}))
    assert len(gather(runs, cohort).members.names) == 2
    (runs["a"] / "recipe.json").write_text(json.dumps({"cohort": "2" * 64, "points": None}))
    with pytest.raises(CohortError, match=r"a/recipe.json: found a run of cohort 2222.*expected 1111.*the cohort of"):
        gather(runs, cohort)


def test_what_the_aggregator_of_a_fold_begins_with_knows_no_label_of_the_fold(runs):
    """Shares are those of the members; the factors on the pool are fitted on the other folds."""
    joined = gather(runs)
    held_out = joined.members.folds == 1
    labels = np.where(held_out[:, None], 2 - joined.members.labels, joined.members.labels)
    other = replace(joined, members=replace(joined.members, labels=labels))
    both = [
        Ensemble(runs["a"], one, keeping(one.members, select(one.members, most=2), (0, 1)), (0, 1), (), "a", {}, True)
        for one in (joined, other)
    ]
    assert both[0].start(1) == both[1].start(1)
    assert both[0].start(0) != both[1].start(0)
    assert both[0].start(FULL).scales == tuple(both[0].selection.scales)
    assert both[0].start(1).shares == (0.5, 0.5)
