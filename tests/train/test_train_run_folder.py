"""The run folder decides: what is there, what is resumed, what is fitted anew, and what may not be read."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from torch import nn

from lumbar.errors import CohortError
from lumbar.stages.points import Localisation
from lumbar_train.data.folds import FULL, fold_name
from lumbar_train.engine.distributed import Distributed
from lumbar_train.errors import LeakError
from lumbar_train.outputs.run_folder import RunFolder
from lumbar_train.outputs.store import read_localisations, write_frame, write_localisations, write_piece
from lumbar_train.overrides import with_overrides
from lumbar_train.pipeline.prepare import begin, fitted_anew
from lumbar_train.recipes import recipe_by_name
from lumbar_train.stages.needs import is_done
from lumbar_train.stages.registry import stage_by_name
from stage_studies import localisation_of, study_of

FOLDS = pd.DataFrame({"study_id": [1, 2, 3, 4], "fold": [0, 0, 1, 1]})


def touch(folder: RunFolder, stage: str, *folds: int) -> None:
    for fold in folds:
        folder.weights(stage, fold).parent.mkdir(parents=True, exist_ok=True)
        folder.weights(stage, fold).touch()


def a_run(path, use_folds, *, resume=False, recipe="model2", words=()):
    recipe = with_overrides(recipe_by_name(recipe), words)
    return SimpleNamespace(
        folder=RunFolder(path),
        out=path,
        recipe=recipe,
        use_folds=use_folds,
        resume=resume,
        seed=0,
        changes=words,
        loop={"amp": "off"},
    )


@pytest.mark.parametrize(("fold", "name"), [(0, "fold0"), (11, "fold11"), (FULL, "full"), (-2, "full2"), (-3, "full3")])
def test_files_are_named_by_fold(tmp_path, fold, name):
    assert fold_name(fold) == name
    folder = RunFolder(tmp_path)
    assert folder.weights("axial_xy", fold) == tmp_path / f"axial_xy/{name}.safetensors"
    assert folder.fit("axial_xy", fold, "-metric") == tmp_path / f"axial_xy/{name}-metric"


@pytest.mark.parametrize(("left", "has_begun"), [("fit.json", True), ("checkpoint.pt", True), ("log.csv", False)])
def test_a_fit_is_resumed_from_a_checkpoint_or_a_result_alone(tmp_path, left, has_begun):
    folder = RunFolder(tmp_path)
    assert not folder.has_begun("axial_xy", 0)
    folder.fit("axial_xy", 0).mkdir(parents=True)
    (folder.fit("axial_xy", 0) / left).touch()
    assert folder.has_begun("axial_xy", 0) is has_begun
    assert not folder.has_begun("axial_xy", FULL)


def test_a_call_that_fits_every_kept_network_of_a_stage_fits_it_anew(tmp_path):
    folder = RunFolder(tmp_path)
    touch(folder, "axial_xy", 0, 1)
    assert "axial_xy" in fitted_anew(a_run(tmp_path, [0, 1, FULL]), None)
    assert fitted_anew(a_run(tmp_path, [0]), ["axial_xy"]) == []  # fold 1's would stay as it was trained
    assert fitted_anew(a_run(tmp_path, [0, 1]), ["sagittal_xy"]) == ["sagittal_xy"]  # nothing of it is kept
    assert fitted_anew(a_run(tmp_path, [0, 1], resume=True), ["axial_xy"]) == []


@pytest.mark.parametrize(
    ("use_folds", "resume", "stages", "is_refused"),
    [
        ([0, 1, FULL], False, None, False),
        ([0, 1], False, ("axial_all",), False),
        ([0], False, ("axial_all",), True),
        ([0, 1], False, ("sagittal_xy",), True),
        ([0, 1], True, ("axial_all",), True),
    ],
)
def test_another_recipe_may_only_replace_every_kept_network(tmp_path, use_folds, resume, stages, is_refused):
    begin(a_run(tmp_path, [0, 1]), None, "auto")
    touch(RunFolder(tmp_path), "axial_all", 0, 1)
    other = a_run(tmp_path, use_folds, resume=resume, words=("axial_all.hidden=64",))
    if is_refused:
        with pytest.raises(CohortError, match="axial_all was trained with hidden 768, found 64"):
            begin(other, stages, "auto")
        assert json.loads((tmp_path / "recipe.json").read_text())["set"] == []  # the former recipe stays
    else:
        begin(other, stages, "auto")
        assert json.loads((tmp_path / "recipe.json").read_text())["set"] == ["axial_all.hidden=64"]


def test_what_is_done_is_what_later_stages_look_for(tmp_path):
    folder = RunFolder(tmp_path)

    def done(name: str, fold: int) -> bool:
        return is_done(folder, stage_by_name(name), fold)

    touch(folder, "sagittal_z", 0, FULL)
    assert done("sagittal_z", 0)  # weights alone
    assert done("sagittal_z", FULL)
    assert not done("sagittal_z", 1)
    touch(folder, "sagittal_xy", 0, FULL)
    assert done("sagittal_xy", FULL)  # a fit on all data predicts nobody
    assert not done("sagittal_xy", 0)
    write_piece(tmp_path / "sagittal_xy", 0, FOLDS[FOLDS["fold"] == 0])
    assert done("sagittal_xy", 0)
    for table in ("levels", "points"):
        write_piece(tmp_path / "localise", 1, FOLDS[FOLDS["fold"] == 1], table)
    assert not done("localise", 1)  # a table is missing
    write_piece(tmp_path / "localise", 1, FOLDS[FOLDS["fold"] == 1], "axial")
    assert done("localise", 1)
    assert not done("denoise", FULL)
    write_frame(folder.table("denoise", "suspect_labels"), FOLDS)
    assert done("denoise", FULL)
    assert not done("aggregator", FULL)


def test_networks_are_kept_beside_what_they_have_seen(tmp_path):
    folder = RunFolder(tmp_path)
    folder.save_network(nn.Linear(2, 2), "axial_xy", 0, [4, 3])
    assert folder.has_weights("axial_xy", 0)
    assert folder.fits_of("axial_xy") == {"fold0"}
    assert json.loads((tmp_path / "axial_xy/fold0.seen.json").read_text())["studies"] == [3, 4]
    folder.check_unseen("axial_xy", 0, [1, 2])
    with pytest.raises(LeakError, match="fold 0's fit has seen study 3"):
        folder.check_unseen("axial_xy", 0, [1, 3])


def test_a_table_is_read_only_once_none_of_its_rows_leaks(tmp_path):
    folder = RunFolder(tmp_path)
    with pytest.raises(CohortError, match=r"oof\.parquet: not found"):
        folder.out_of_fold("axial_all", "oof", FOLDS)
    write_frame(folder.table("axial_all"), FOLDS)
    assert folder.out_of_fold("axial_all", "oof", FOLDS) == tmp_path / "axial_all/oof.parquet"
    write_frame(folder.table("axial_all"), FOLDS.assign(fold=[0, 1, 1, 1]))
    with pytest.raises(LeakError, match="study 2 was predicted by fold 1, but is held out in fold 0"):
        folder.out_of_fold("axial_all", "oof", FOLDS)


def test_seconds_are_added_by_stage(tmp_path):
    folder = RunFolder(tmp_path)
    folder.add_seconds("sagittal_xy", 1.26, torch.device("cpu"))
    folder.add_seconds("axial_xy", 2.0, torch.device("cpu"))
    folder.add_seconds("sagittal_xy", 3.04, torch.device("cpu"))
    noted = json.loads((tmp_path / "seconds.json").read_text())
    assert (noted["sagittal_xy"], noted["axial_xy"]) == (3.0, 2.0)
    assert noted["machine"].endswith("threads, cpu")


# What a process does on its share


def share(rank: int, world: int, fold: int, tmp_path) -> list[int]:
    from lumbar_train.stages.context import RunContext

    run = SimpleNamespace(
        fold_of={1: 0, 2: 0, 3: 1, 4: 0, 5: 0, 6: 0},
        folder=SimpleNamespace(check_unseen=lambda *given: None),
        distributed=SimpleNamespace(rank=rank, world=world, is_main=False),
        loop={},
    )
    return list(RunContext.held_out_studies(run, fold, "title", ["axial_xy"]))


def test_processes_share_the_studies_of_a_fold_and_none_of_a_fit_on_all_data(tmp_path):
    assert share(0, 1, 0, tmp_path) == [1, 2, 4, 5, 6]
    assert sorted(share(0, 2, 0, tmp_path) + share(1, 2, 0, tmp_path)) == [1, 2, 4, 5, 6]
    assert share(0, 1, FULL, tmp_path) == []


def test_outputs_are_joined_in_the_order_of_studies():
    from lumbar_train.stages.context import RunContext

    written = []
    run = SimpleNamespace(distributed=Distributed())
    RunContext.join_outputs(run, {5: "b", 2: "a"}, written.append)
    assert list(written[0].items()) == [(2, "a"), (5, "b")]


def test_a_study_of_frames_leaves_the_points_of_other_studies_without_a_frame(tmp_path):
    one = localisation_of(study_of())
    frames = Localisation(
        sagittal_points=[replace(point, frame=3, probability=0.5) for point in one.sagittal_points],
        axial_levels=[replace(level, frame=3, probability=0.5) for level in one.axial_levels],
        levels_mm=one.levels_mm,
    )
    write_localisations(tmp_path, {1: one, 2: frames}, {1: 0, 2: 0}, 0)
    read = read_localisations(tmp_path, [1, 2])
    assert read[1].sagittal_points == one.sagittal_points
    assert read[1].axial_levels == one.axial_levels
    assert read[2].sagittal_points == frames.sagittal_points
    assert read[2].axial_levels == frames.axial_levels


def test_points_of_a_run_from_before_a_field_was_added_are_read_with_its_default(tmp_path):
    study = study_of()
    place = localisation_of(study)
    write_localisations(tmp_path, {1: place}, {1: 0}, 0)
    for name in ("points", "axial"):
        frame = pd.read_parquet(tmp_path / f"{name}.parquet")
        frame.drop(columns="probability").to_parquet(tmp_path / f"{name}.parquet")
    read = read_localisations(tmp_path, [1])[1]
    assert [point.probability for point in read.sagittal_points] == [None] * len(place.sagittal_points)
    assert [level.level for level in read.axial_levels] == [level.level for level in place.axial_levels]
