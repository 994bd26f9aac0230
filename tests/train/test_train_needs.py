"""Folds that cannot stand alone: a stage has every out-of-fold output that it trains on, or refuses in one line."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

import train_tiny
from lumbar.errors import CohortError
from lumbar_train.__main__ import main
from lumbar_train.data.folds import FULL
from lumbar_train.outputs.run_folder import RunFolder
from lumbar_train.recipes import recipe_by_name
from lumbar_train.stages.needs import check_plan, is_done, needs, plan_of
from lumbar_train.stages.registry import chosen_stages, stage_by_name, stages_of

FOLDS = (0, 1, 2)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    yield
    torch.set_num_threads(1)


def leave(run: Path, stage: str, *folds: int, tables: tuple[str, ...] = ("oof",)) -> None:
    """What a stage leaves on folds, as far as others look for it."""
    (run / stage / "pieces").mkdir(parents=True, exist_ok=True)
    for fold in folds:
        name = "full" if fold == FULL else f"fold{fold}"
        (run / stage / f"{name}.safetensors").touch()
        for table in tables:
            if fold != FULL:
                pd.DataFrame({"study_id": [fold], "fold": [fold]}).to_parquet(
                    run / stage / "pieces" / f"{table}.fold{fold}.parquet"
                )


def plan(recipe: str, folds: list[int], names: tuple[str, ...] = ()) -> list[tuple[str, int]]:
    return plan_of(chosen_stages(recipe_by_name(recipe), names or None), folds)


def check(run: Path, pairs: list[tuple[str, int]], recipe: str = "model2") -> None:
    check_plan(RunFolder(run), pairs, stages_of(recipe_by_name(recipe)), FOLDS, command="train")


def is_there(run: Path, stage: str, fold: int) -> bool:
    return is_done(RunFolder(run), stage_by_name(stage), fold)


def wanted_by(stage: str, fold: int, recipe: str) -> set[tuple[str, int]]:
    return needs(stage_by_name(stage), fold, FOLDS, stages_of(recipe_by_name(recipe)))


def test_partial_stages_run_on_held_out_folds_and_joint_ones_once():
    pairs = plan("strong", [0, FULL, 1, -2])
    assert [fold for name, fold in pairs if name == "sagittal_xy"] == [-2, FULL, 0, 1]  # the longest first
    for name in ("localise", "axial_all-first"):
        assert [fold for other, fold in pairs if other == name] == [0, 1]
    for name in ("denoise", "aggregator"):
        assert [fold for other, fold in pairs if other == name] == [FULL]


@pytest.mark.parametrize("recipe", ["model2", "strong"])
def test_all_folds_together_need_nothing_else(tmp_path, recipe):
    check(tmp_path, plan(recipe, [0, 1, 2, FULL, -2]), recipe)
    check(tmp_path, plan(recipe, [0, 1, 2]), recipe)


@pytest.mark.parametrize("recipe", ["model2", "strong"])
@pytest.mark.parametrize("folds", [[0, FULL], [0, 1, FULL], [FULL], [1]])
def test_a_subset_of_folds_is_refused_with_the_command_that_makes_the_rest(tmp_path, recipe, folds):
    with pytest.raises(CohortError) as caught:
        check(tmp_path, plan(recipe, folds), recipe)
    line = str(caught.value)
    assert "\n" not in line
    missing = [k for k in FOLDS if k not in folds]
    assert f"sagittal_z ({'full' if FULL in folds else 'fold1'})" in line
    assert f"no output of sagittal_xy of fold {', '.join(map(str, missing))}" in line
    stages, _, of = line.partition("--stages ")[2].partition(" --folds ")
    command = plan(recipe, [int(word) for word in of.split(",")], tuple(stages.split(",")))
    assert command
    check(tmp_path, command, recipe)  # it stands alone, and then the call that was refused does too
    for stage, fold in command:
        leave(tmp_path, stage, fold, tables=("levels", "points", "axial") if stage == "localise" else ("oof",))
        if stage == "denoise":
            (tmp_path / "denoise/suspect_labels.parquet").touch()
    check(tmp_path, plan(recipe, folds), recipe)


def test_outputs_of_an_earlier_call_count(tmp_path):
    leave(tmp_path, "sagittal_xy", 0, 1)
    check(tmp_path, [("sagittal_z", 2)])
    with pytest.raises(CohortError, match=r"sagittal_z \(fold1\): found no output of sagittal_xy of fold 2"):
        check(tmp_path, [("sagittal_z", 1)])
    leave(tmp_path, "sagittal_xy", 2)
    check(tmp_path, [("sagittal_z", FULL), ("sagittal_z", 1)])


def test_a_fold_whose_studies_gave_no_point_is_done(tmp_path):
    leave(tmp_path, "sagittal_xy", 0)
    pd.DataFrame({"study_id": [], "fold": []}).to_parquet(tmp_path / "sagittal_xy/pieces/oof.fold0.parquet")
    assert is_there(tmp_path, "sagittal_xy", 0)
    assert not is_there(tmp_path, "sagittal_xy", 1)


def test_weights_without_their_outputs_are_not_enough(tmp_path):
    (tmp_path / "axial_all").mkdir()
    (tmp_path / "axial_all/fold0.safetensors").touch()
    assert not is_there(tmp_path, "axial_all", 0)


def test_classifiers_need_every_fold_and_the_suspect_labels_where_there_are_some():
    assert wanted_by("axial_all", 1, "model2") == {("localise", k) for k in FOLDS}
    assert ("denoise", FULL) in wanted_by("axial_all", FULL, "strong")
    assert wanted_by("axial_all-first", 1, "strong") == {("localise", k) for k in FOLDS}
    assert wanted_by("axial_xy", 1, "strong") == set()


def test_a_subset_of_folds_trains_nothing_and_the_rest_may_follow(tmp_path, capsys):
    data = train_tiny.write_cohort(tmp_path / "cohort")
    run = tmp_path / "run"
    command = ["train", "--data", str(data), "--recipe", "tiny", "--out", str(run), "--workers", "0", "--device", "cpu"]
    assert main([*command, "--folds", "0,full"]) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "sagittal_z (full): found no output of sagittal_xy of fold 1, expected it before this stage" in line
    assert f"--data {data} --recipe tiny --out {run} --resume --stages" in line
    assert not list(run.rglob("*.safetensors"))
    for folds in ("0", "1"):
        assert main([*command, "--stages", "sagittal_xy", "--folds", folds, "--resume"]) == 0
    assert main([*command, "--stages", "sagittal_z", "--folds", "full", "--overwrite"]) == 0
    shutil.rmtree(run / "sagittal_xy/pieces")  # as runs of before left it
    assert main([*command, "--stages", "sagittal_z", "--folds", "full", "--resume"]) == 0


def test_a_fold_that_there_is_not_is_refused_before_a_study_is_decoded(tiny_cohort, tmp_path, capsys):
    assert train_tiny.train(tiny_cohort, tmp_path / "run", "--folds", "0,7") == 1
    assert "--folds: found '7', expected of 0, 1, full" in capsys.readouterr().err
    assert not (tmp_path / "run" / "cache").exists()


@pytest.mark.parametrize("is_own", [True, False])
def test_a_number_of_folds_that_the_table_has_not_is_refused_before_a_study_is_decoded(
    tiny_cohort, tmp_path, capsys, is_own
):
    table = tmp_path / ("run/folds.csv" if is_own else "three.csv")
    table.parent.mkdir(exist_ok=True)
    table.write_text("study_id,fold\n" + "".join(f"{201 + k},{k % 3}\n" for k in range(8)))
    given = () if is_own else ("--fold-file", str(table))
    for words, said in (
        (("--set", "recipe.n_folds=2"), f"--set recipe.n_folds=2: found 3 folds in {table}, expected the same number"),
        (("--folds", "0,3"), "--folds: found '3', expected of 0, 1, 2, full"),
    ):
        assert train_tiny.train(tiny_cohort, tmp_path / "run", *given, *words) == 1
        assert said in capsys.readouterr().err
        assert not (tmp_path / "run" / "cache").exists()


def test_a_run_that_is_not_finished_is_not_taken_for_a_bundle(tiny_cohort, tmp_path, capsys):
    (tmp_path / "recipe.json").write_text('{"name": "demo"}')
    assert main(["evaluate", "--run", str(tmp_path), "--data", str(tiny_cohort)]) == 1
    assert "found a run that is not finished, expected one that is; go on with" in capsys.readouterr().err
