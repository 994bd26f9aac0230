"""Which labels a classifier learns from: consistent with localisation, softened strictly out of fold."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from lumbar.config import CLASSIFIERS, AxialClassifierConfig, SagittalClassifierConfig
from lumbar.labels import COLUMNS, CONDITIONS, LEVELS, SAGITTAL_T1, SAGITTAL_T2
from lumbar.stages.crop import NO_JITTER, level_slices
from lumbar_train.data.folds import FULL
from lumbar_train.data.usable import read_dropped
from lumbar_train.errors import LeakError
from lumbar_train.outputs.oof import read_seen
from lumbar_train.outputs.run_folder import RunFolder
from lumbar_train.outputs.store import logits_frame, write_frame
from lumbar_train.recipes import Recipe, recipe_by_name
from lumbar_train.run import train
from lumbar_train.stages.classify import LevelCrops
from lumbar_train.stages.consistency import ConsistencyConfig, judged, kept, write_kept
from lumbar_train.stages.denoise import FIRST, DenoiseConfig, first_round_probs, suspect_labels
from lumbar_train.stages.losses import graded_loss
from lumbar_train.stages.needs import needs, plan_of
from lumbar_train.stages.pseudo import PSEUDO, PseudoConfig, parts_of, predictions_path, soft_labels
from lumbar_train.stages.registry import stage_by_name, stages_of
from stage_studies import localisation_of, stack_of, study_of
from train_tiny import SMALL, write_cohort

RNG = np.random.default_rng
SAGITTAL = SagittalClassifierConfig(SMALL, size=40, window=3)
AXIAL = AxialClassifierConfig(SMALL, size=40, window=3)
CONFIG = ConsistencyConfig()
COUNTED = np.zeros(25, np.int8)


class OneStudy:
    def __init__(self, study=None):
        self.item = study or study_of()

    def study(self, study_id):
        return self.item


def points_of(study, localisation) -> pd.DataFrame:
    """A reader's points exactly where localisation has them."""
    rows = []
    for p in localisation.sagittal_points:
        if p.description == SAGITTAL_T2 and p.side is None:
            rows.append((p.series_id, p.instance_number, CONDITIONS[0], p.level, None, p.x_px, p.y_px))
        elif p.description == SAGITTAL_T1 and p.side:
            name = f"{p.side}_neural_foraminal_narrowing"
            rows.append((p.series_id, p.instance_number, name, p.level, p.side, p.x_px, p.y_px))
    for a in localisation.axial_levels:
        for side, xy in (("left", a.left_px), ("right", a.right_px)):
            rows.append((a.series_id, a.instance_number, f"{side}_subarticular_stenosis", a.level, side, *xy))
    columns = ["series_id", "instance_number", "condition", "level", "side", "x_px", "y_px"]
    return pd.DataFrame(rows, columns=columns).assign(study_id=study.study_id)


def moved(points: pd.DataFrame, rows, dx_px: float, dy_px: float = 0.0) -> pd.DataFrame:
    out = points.copy()
    out.loc[rows, "x_px"] += dx_px
    out.loc[rows, "y_px"] += dy_px
    return out


@pytest.fixture
def marked():
    study = study_of()
    localisation = localisation_of(study)
    return study, localisation, points_of(study, localisation)


def judge(study, localisation, points, sagittal=SAGITTAL, axial=AXIAL):
    return judged(OneStudy(study), {7: localisation}, points, sagittal, axial, CONFIG)


@pytest.mark.parametrize("max_slices", [0, 20])
def test_points_where_localisation_has_them_all_count(marked, max_slices):
    sagittal, axial = replace(SAGITTAL, max_slices=max_slices), replace(AXIAL, max_slices=max_slices)
    frame = judge(*marked, sagittal, axial)
    assert len(frame) == 25
    assert frame["is_inside"].all()
    result = kept(frame, {7: COUNTED}, CONFIG)
    assert (result.labels[7] == 0).all()
    assert not result.left_out


def test_the_share_is_that_of_the_crop_which_training_sees(marked):
    study, localisation, points = marked
    row = points.index[points["condition"] == CONDITIONS[0]][2]
    grid = level_slices(study, localisation, 2, SAGITTAL, NO_JITTER)[0].grid
    x, y = grid.to_source(np.array([[0.3 * 40 - 0.5, 0.85 * 40 - 0.5]]))[0]
    points.loc[row, ["x_px", "y_px"]] = x, y
    frame = judge(study, localisation, points)
    judged_row = frame[(frame["condition"] == CONDITIONS[0]) & (frame["level"] == LEVELS[2])].iloc[0]
    assert (judged_row["x"], judged_row["y"]) == pytest.approx((0.3, 0.85))
    assert not judged_row["is_inside"]  # 0.85 is beyond 0.8


@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_label_whose_point_lies_outside_the_middle_does_not_count(marked, condition):
    study, localisation, points = marked
    row = points.index[(points["condition"] == condition) & (points["level"] == LEVELS[1])]
    frame = judge(study, localisation, moved(points, row, 18.0))
    result = kept(frame, {7: COUNTED}, CONFIG)
    gone = [COLUMNS[k] for k in np.flatnonzero(result.labels[7] < 0)]
    assert gone == [f"{condition}_{LEVELS[1]}"]
    assert not result.left_out
    assert (COUNTED == 0).all()  # nobody's labels are changed


def test_an_axial_point_on_a_slice_of_another_level_does_not_count(marked):
    study, localisation, points = marked
    row = points.index[(points["condition"] == CONDITIONS[3]) & (points["level"] == LEVELS[1])]
    points.loc[row, "instance_number"] -= 5
    frame = judge(study, localisation, points)
    assert frame[~frame["is_inside"]]["condition"].tolist() == [CONDITIONS[3]]


@pytest.mark.parametrize(
    ("word", "n_misses", "is_left_out"),
    [("foraminal", 6, False), ("foraminal", 7, True), ("spinal", 3, False), ("spinal", 4, True),
     ("subarticular", 6, False), ("subarticular", 7, True)],
)  # fmt: skip
def test_a_series_with_many_misses_is_left_out(marked, word, n_misses, is_left_out):
    study, localisation, points = marked
    rows = points.index[points["condition"].str.contains(word)][:n_misses]
    result = kept(judge(study, localisation, moved(points, rows, 18.0)), {7: COUNTED}, CONFIG)
    name = {"foraminal": "t1", "spinal": "t2", "subarticular": "ax"}[word]
    n_of_kind = int(points["condition"].str.contains(word).sum())
    assert result.left_out == (frozenset({name}) if is_left_out else frozenset())
    assert (result.labels[7] < 0).sum() == (n_of_kind if is_left_out else n_misses)


def test_a_label_counts_where_one_of_its_series_is_right():
    study = study_of()
    study.series[SAGITTAL_T1].append(stack_of("t1b", "sagittal", 9))
    localisation = localisation_of(study)
    localisation.sagittal_points += [
        replace(p, series_id="t1b", stack=1) for p in localisation.sagittal_points if p.description == SAGITTAL_T1
    ]
    points = points_of(study, localisation)
    rows = points.index[points["series_id"] == "t1b"]
    result = kept(judge(study, localisation, moved(points, rows, 25.0)), {7: COUNTED}, CONFIG)
    assert (result.labels[7] == 0).all()
    assert result.left_out == {"t1b"}
    config = replace(SAGITTAL, per_series=True, max_slices=20)
    still = replace(recipe_by_name("model2").stages["sagittal_classifier"].augment, move=0.0, on_device=True)
    data = LevelCrops(OneStudy(study), {7: localisation}, {7: COUNTED}, config, still, left_out=result.left_out)
    shown = {p.series_id for p in data.localisations[7].sagittal_points}
    assert shown == {"t1", "t2"}


def test_labels_without_a_point_or_a_crop_stay(marked):
    study, localisation, points = marked
    points = points[points["level"] != LEVELS[0]]
    localisation.axial_levels = [a for a in localisation.axial_levels if a.level != LEVELS[1]]
    result = kept(judge(study, localisation, points), {7: COUNTED}, CONFIG)
    assert (result.labels[7] == 0).all()


def test_external_points_are_no_labels(marked):
    study, localisation, points = marked
    points["source"] = "competition"
    far = moved(points, points.index, 40.0).assign(source="external")
    frame = judge(study, localisation, pd.concat([points, far], ignore_index=True))
    assert len(frame) == 25
    assert frame["is_inside"].all()


def test_the_report_counts_what_was_left_out(marked, tmp_path):
    study, localisation, points = marked
    rows = points.index[points["condition"] == CONDITIONS[1]]
    labels = {7: np.where(np.arange(25) == 5, -1, 0).astype(np.int8)}  # one of the five is not labelled at all
    frame = judge(study, localisation, moved(points, rows, 18.0))
    assert write_kept(tmp_path, frame, labels, kept(frame, labels, CONFIG), CONFIG) == 4
    counts = read_dropped(tmp_path)["counts"]
    assert [(name.split(",")[0], n) for name, n in counts.items()] == [("labels: left neural foraminal narrowing", 4)]
    assert "central 60 %" in next(iter(counts))
    assert len(pd.read_parquet(tmp_path / "consistency/points.parquet")) == 25


# Softened labels


def test_parts_are_equal_disjoint_and_the_same_again():
    parts = parts_of(range(100, 111), 2, seed=3)
    assert [len(part) for part in parts] == [6, 5]
    assert sorted(parts[0] + parts[1]) == list(range(100, 111))
    assert parts == parts_of(reversed(range(100, 111)), 2, seed=3)
    assert parts != parts_of(range(100, 111), 2, seed=4)


def predictions(run, name, fold, logits: dict[int, np.ndarray], fold_of):
    masks = {k: np.ones((5, 5), bool) for k in logits}
    for mask in masks.values():
        mask[4] = False
    write_frame(predictions_path(run, name, fold), logits_frame(logits, masks, fold_of))


def test_a_soft_label_is_half_the_label_and_half_the_mean_prediction(tmp_path):
    fold_of = {1: 0, 2: 1, 3: 1}
    even = np.zeros((5, 5, 3))
    sure = np.zeros((5, 5, 3))
    sure[..., 2] = 50.0
    for name, logits in zip(CLASSIFIERS, (even, sure, sure), strict=True):
        predictions(tmp_path, name, 0, {2: logits, 3: logits}, fold_of)
    labels = {k: np.zeros(25, np.int8) for k in fold_of}
    labels[2][3] = -1
    soft = soft_labels(tmp_path, CLASSIFIERS, 0, labels, fold_of, PseudoConfig(share=0.5))
    assert sorted(soft) == [2, 3]
    plain = np.array([1 / 9, 1 / 9, 7 / 9]) / (1, 2, 4)
    mean = plain / plain.sum()
    np.testing.assert_allclose(soft[2][0], 0.5 * np.array([1, 0, 0]) + 0.5 * mean, atol=1e-6)
    assert np.isnan(soft[2][3]).all()  # no label: nothing to soften
    assert np.isnan(soft[2][20:]).all()  # no classifier saw it


def test_predictions_that_know_the_frequencies_alone_leave_the_best_answer_where_labels_put_it(tmp_path):
    """The loss weighs grades 1/2/4, and the networks have learnt under it: nothing is weighted twice."""
    n, weights, shares = 400, np.array([1.0, 2.0, 4.0]), np.array([0.7, 0.2, 0.1])
    grades = np.repeat([0, 1, 2], (n * shares).round().astype(int)).astype(np.int8)
    labels = {k: np.full(25, grade, np.int8) for k, grade in enumerate(grades)}
    fold_of = dict.fromkeys(labels, 1)
    logits = np.broadcast_to(np.log(shares * weights), (5, 5, 3))
    for name in CLASSIFIERS:
        predictions(tmp_path, name, 0, dict.fromkeys(labels, logits), fold_of)
    soft = soft_labels(tmp_path, CLASSIFIERS, 0, labels, fold_of, PseudoConfig(share=0.5))
    best = weights * np.mean([row[0] for row in soft.values()], axis=0)
    np.testing.assert_allclose(best / best.sum(), shares * weights / (shares * weights).sum(), atol=1e-4)


def test_the_first_round_judges_labels_by_plain_frequencies(tmp_path):
    shares = np.array([0.05, 0.05, 0.9])
    logits = {7: np.broadcast_to(np.log(shares * (1.0, 2.0, 4.0)), (5, 5, 3))}
    for name in CLASSIFIERS:
        (tmp_path / f"{name}{FIRST}").mkdir()
        write_frame(tmp_path / f"{name}{FIRST}/oof.parquet", logits_frame(logits, {7: np.ones((5, 5), bool)}, {7: 0}))
    probs = first_round_probs(tmp_path, CLASSIFIERS, np.array([7]))
    np.testing.assert_allclose(probs, np.broadcast_to(shares, (1, 25, 3)), atol=1e-6)
    mild = np.zeros((1, 25), np.int8)
    assert not suspect_labels(mild, probs, DenoiseConfig(below=0.03, most=1.0)).any()


def test_predictions_of_the_fold_that_is_held_out_are_refused(tmp_path):
    fold_of = {1: 0, 2: 1}
    for name in CLASSIFIERS:
        predictions(tmp_path, name, 0, {1: np.zeros((5, 5, 3)), 2: np.zeros((5, 5, 3))}, fold_of)
    with pytest.raises(LeakError, match="study 1, which fold0 holds out"):
        soft_labels(tmp_path, CLASSIFIERS, 0, dict.fromkeys((1, 2), COUNTED), fold_of, PseudoConfig())


def test_the_loss_of_soft_labels():
    out = torch.randn(4, 5, 3)
    labels = torch.randint(-1, 3, (4, 5))
    batch = {"crops": out, "mask": out, "level": out, "labels": labels}

    def loss(soft):
        value, figures = graded_loss(lambda *a: out, batch | ({} if soft is None else {"soft": soft}))
        return float(value), float(figures["weight"])

    hard = torch.nn.functional.one_hot(labels.clamp(min=0), 3).float()
    assert loss(hard) == pytest.approx(loss(None), rel=1e-5)
    assert loss(torch.full_like(hard, torch.nan)) == pytest.approx(loss(None), rel=1e-5)
    soft = 0.5 * hard + 0.5 * torch.tensor([0.2, 0.3, 0.5])
    weights = torch.tensor([1.0, 2.0, 4.0])
    each = -(soft * weights * torch.log_softmax(out, -1)).sum(-1)[labels >= 0]
    total = (soft * weights).sum(-1)[labels >= 0].sum()
    assert loss(soft) == pytest.approx((float(each.sum() / total), float(total)), rel=1e-5)


def test_soft_labels_ride_with_mirroring_and_mixing():
    study = study_of()
    soft = {k: RNG(k).dirichlet((1, 1, 1), 25).astype(np.float32) for k in (7, 8)}
    labels = {k: np.full(25, k - 7, np.int8) for k in (7, 8)}
    places = {k: localisation_of(study) for k in (7, 8)}
    recipe = recipe_by_name("strong").stages["axial_all"]
    config = replace(AXIAL, conditions=(0, 1, 2, 3, 4))
    data = LevelCrops(OneStudy(study), places, labels, config, recipe.augment, replace(recipe.mixing, cutmix=1.0),
                      soft=soft)  # fmt: skip
    swapped = [0, 2, 1, 4, 3]
    seen = set()
    for seed in range(12):
        sample = data.sample(2, RNG(seed))
        own = soft[7].reshape(5, 5, 3)[:, 2]
        is_mirrored = not np.array_equal(sample["soft"].numpy(), own)
        seen.add(is_mirrored)
        if is_mirrored:
            np.testing.assert_array_equal(sample["soft"].numpy(), own[swapped])
        assert sample["soft2"].shape == (5, 3)
    assert seen == {False, True}


def test_each_fit_has_its_own_predictions_and_all_fits_on_all_data_share_one_set():
    recipe = replace(recipe_by_name("demo"), pseudo=PseudoConfig())
    stages = stages_of(recipe)
    plan = plan_of(stages, [0, 1, FULL, FULL - 1])
    name = f"axial_all{PSEUDO}"
    assert [fold for stage, fold in plan if stage == name] == [FULL, 0, 1]
    for fold, wanted in ((0, 0), (FULL, FULL), (FULL - 1, FULL)):
        assert (name, wanted) in needs(stage_by_name("axial_all"), fold, [0, 1], stages)
    assert not any(PSEUDO in stage.name for stage in stages_of(recipe_by_name("demo")))


@pytest.mark.slow
def test_a_whole_run_softens_labels_by_networks_that_saw_neither_the_study_nor_the_fold(tmp_path):
    root = write_cohort(tmp_path / "cohort", 8)
    import train_tiny  # registers the recipe

    assert train_tiny.tiny
    run = train(root, tmp_path / "run", recipe="tiny", folds="0,1,full", overrides=(
        "recipe.pseudo=on", "recipe.consistency=on", "*.epochs=1", "recipe.full_seeds=2"), workers=0)  # fmt: skip
    folds = pd.read_csv(tmp_path / "run/folds.csv").set_index("study_id")["fold"]
    folder = RunFolder(tmp_path / "run")
    for name in CLASSIFIERS:
        for fold in (0, 1, FULL):
            held_out = set(folds.index[folds == fold])
            frame = pd.read_parquet(predictions_path(folder.path, name, fold))
            predicted = set(map(int, frame["study_id"]))
            assert not predicted & held_out
            for number in range(2):
                _, seen = read_seen(folder.weights(f"{name}{PSEUDO}", fold, f"-part{number}"))
                assert not seen & held_out
                assert seen
            parts = [read_seen(folder.weights(f"{name}{PSEUDO}", fold, f"-part{n}"))[1] for n in range(2)]
            assert not parts[0] & parts[1]
            assert parts[0] | parts[1] == set(folds.index) - held_out
    assert run.evaluation is not None
    manifest = json.loads((run.export / "weights_manifest.json").read_text())
    assert not any(PSEUDO in entry["stage"] for entry in manifest["weights"])


# What the recipes say


def test_model2_is_trained_as_the_solution_was():
    recipe = recipe_by_name("model2")
    assert recipe.full_seeds == 4
    assert recipe.consistency == ConsistencyConfig(0.2, 6, 3, 6)
    sagittal = recipe.stages["sagittal_classifier"]
    assert (sagittal.network.max_slices, sagittal.network.conditions) == (40, (0, 1, 2, 3, 4))
    assert sagittal.network.per_series
    for name in CLASSIFIERS:
        augment = recipe.stages[name].augment
        assert (augment.turn_deg, augment.zoom, augment.shift, augment.holes) == (30.0, 0.2, 0.2, (10, 30))
        assert augment.keep_slices == ((1.0, 1.0) if name == "sagittal_classifier" else (0.5, 0.9))
        assert recipe_by_name("strong").stages[name].augment == augment


def test_strong_adds_mixing_over_more_epochs_and_softened_labels():
    base, recipe = recipe_by_name("model2"), recipe_by_name("strong")
    assert recipe.pseudo == PseudoConfig(share=0.5)
    for name in CLASSIFIERS:
        assert recipe.stages[name].mixing.cutmix > 0
        assert recipe.stages[name].fit.epochs >= 10 > base.stages[name].fit.epochs


def test_demo_stays_what_its_weights_were_trained_by():
    recipe = recipe_by_name("demo")
    assert (recipe.pseudo, recipe.consistency, recipe.denoise, recipe.full_seeds) == (None, None, None, 1)
    for stage in recipe.stages.values():
        assert not getattr(stage.network, "max_slices", 0)
        assert stage.augment is None or not stage.augment.on_device
    assert isinstance(recipe, Recipe)
