"""The competition's own number of studies, with its oddities, through all that comes before training and into it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import competition_tables as competition
from lumbar.labels import AXIAL_T2, COLUMNS, LEVELS, SAGITTAL_T1, SAGITTAL_T2
from lumbar_train.data.cache import Cache, build_cache
from lumbar_train.data.duplicates import check_copies
from lumbar_train.data.folds import FULL, make_folds
from lumbar_train.data.tables import read_cohort
from lumbar_train.data.true_points import true_localisation
from lumbar_train.data.usable import drop_unreadable
from lumbar_train.outputs.run_folder import RunFolder
from lumbar_train.outputs.store import levels_frame, write_localisations, write_piece
from lumbar_train.overrides import with_overrides
from lumbar_train.recipes import recipe_by_name
from lumbar_train.stages.consistency import judged, kept
from lumbar_train.stages.context import RunContext
from lumbar_train.stages.fitting import fit_on_fold
from lumbar_train.stages.registry import STAGES

N_TRAINED = 40  # studies of one epoch of each stage: all of them would take ten minutes more and show nothing new
SMALL = (
    "*.backbone=resnet10t", "*.backbone.channels=8,8,8,16", "*.backbone.stem_width=16", "*.backbone.norm=group",
    "*.epochs=1", "*.repeats=1", "sagittal_xy.size=32", "axial_xy.size=32", "sagittal_z.size=32", "sagittal_z.hidden=8",
    "sagittal_classifier.size=24", "axial_subarticular.size=24", "axial_all.size=24", "sagittal_classifier.hidden=8",
    "axial_subarticular.hidden=8", "axial_all.hidden=8", "recipe.n_folds=4",
)  # fmt: skip

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """Cohort, cache and folds of the competition's size."""
    root = competition.write_competition_size(tmp_path_factory.mktemp("competition"))
    whole = read_cohort(root, progress=False)
    folder = tmp_path_factory.mktemp("cache")
    build_cache(folder, root, "train", whole.series, workers=0, progress=False)
    cache = Cache(folder)
    cohort = drop_unreadable(whole, cache)
    folds = make_folds(cohort, 4, seed=0)
    check_copies(cache, folds)
    return cohort, cache, folds


def test_tables_of_the_competitions_size_are_read_with_their_oddities(everything):
    cohort, cache, folds = everything
    assert len(cohort) == competition.N_STUDIES
    assert int((cohort.labels < 0).sum()) == competition.N_MISSING
    kinds = cohort.series["series_description"].value_counts()
    assert kinds[AXIAL_T2] == 1975 + 335
    assert kinds[SAGITTAL_T1] == 1975 - 2 + 7
    assert kinds[SAGITTAL_T2] == 1975 - 1
    assert any("sides swapped" in reason for reason in cohort.dropped)
    assert any("both sides" in reason for reason in cohort.dropped)
    counts = folds["fold"].value_counts()
    assert counts.max() - counts.min() <= 8
    severe = pd.Series((cohort.labels[:, :5] == 2).any(axis=1)).groupby(
        folds.set_index("study_id")["fold"].loc[cohort.study_ids].to_numpy()
    )
    assert severe.mean().max() - severe.mean().min() < 0.03
    stack = cache.study(int(cohort.study_ids[10])).series[SAGITTAL_T2][0]
    assert (np.diff(stack.positions_mm) > 0).all()  # by space, whatever the instance numbers say


def truth_of(cohort, study_id: int) -> pd.DataFrame:
    """Where the levels truly are, as a table of true points."""
    rows = []
    for level, z in zip(LEVELS, competition.LEVEL_MM, strict=True):
        rows.append((study_id, "spinal_canal_stenosis", level, None, 0.0, -5.0, z))
        for side, x in (("left", 16.0), ("right", -16.0)):
            rows.append((study_id, f"{side}_neural_foraminal_narrowing", level, side, x, -10.0, z))
            rows.append((study_id, f"{side}_subarticular_stenosis", level, side, x / 1.6, 0.0, z))
    return pd.DataFrame(rows, columns=["study_id", "condition", "level", "side", "x_mm", "y_mm", "z_mm"])


def test_targets_the_consistency_filter_and_one_epoch_of_every_stage(everything, tmp_path):
    cohort, cache, folds = everything
    recipe = with_overrides(recipe_by_name("model2"), SMALL)
    places = {int(k): true_localisation(cache.study(int(k)), truth_of(cohort, int(k))) for k in cohort.study_ids}
    labels = {int(k): row for k, row in zip(cohort.study_ids, cohort.labels, strict=True)}
    sagittal, axial = (recipe.stages[name].network for name in ("sagittal_classifier", "axial_subarticular"))
    frame = judged(cache, places, cohort.points, sagittal, axial, recipe.consistency)
    result = kept(frame, labels, recipe.consistency)
    n_odd = len(range(7, competition.N_STUDIES, 40))
    assert len(frame) > 40_000
    assert n_odd // 2 < len(result.left_out) <= 2 * n_odd  # their T2 points lie 40 mm too low
    n_gone = sum(int(((labels[k] >= 0) & (row < 0)).sum()) for k, row in result.labels.items())
    assert 3 * n_odd <= n_gone <= 15 * n_odd

    few = np.sort(np.random.default_rng(1).permutation(cohort.study_ids)[:N_TRAINED])
    gone = np.setdiff1d(cohort.study_ids, few)
    small = replace(cohort.without(map(int, gone), {}), series=cohort.series[cohort.series["study_id"].isin(few)])
    own_folds = folds[folds["study_id"].isin(few)].reset_index(drop=True)
    run = RunContext(
        cohort=small,
        folds=own_folds,
        recipe=recipe,
        folder=RunFolder(tmp_path),
        cache=cache,
        use_folds=[FULL],
        loop={"progress": False},
    )
    assert all(target.is_usable for target in run.targets.values()) or len(run.targets) == N_TRAINED
    for fold in sorted(set(own_folds["fold"])):
        mine = {k: places[k] for k in map(int, own_folds["study_id"][own_folds["fold"] == fold])}
        write_piece(
            tmp_path / "sagittal_xy", fold, levels_frame({k: v.levels_mm for k, v in mine.items()}, run.fold_of)
        )
        write_localisations(tmp_path / "localise", mine, run.fold_of, fold)
    for stage in STAGES:
        if stage.fitted is not None and stage.is_part_of(recipe):
            network = fit_on_fold(run, stage, FULL, stage.fitted)
            assert all(bool(np.isfinite(p.detach().numpy()).all()) for p in network.parameters())
            assert run.folder.has_weights(stage.name, FULL)
    assert (tmp_path / "consistency/counts.json").is_file()
    assert set(COLUMNS)
