"""Parts of the report: ranking figures, warnings, reasons, bins with too few rows."""

import json

import numpy as np
import pandas as pd
import pytest

from lumbar_train.data.tables import Cohort
from lumbar_train.engine.loop_config import LoopConfig
from lumbar_train.engine.progress import Progress
from lumbar_train.evaluation.discrimination import FIGURES, auc, discrimination, quadratic_kappa
from lumbar_train.evaluation.evaluate import Evaluation
from lumbar_train.evaluation.page_parts import about, column_title, grouped_reasons, level_rows, summed_up, warnings
from lumbar_train.evaluation.plots import plot_curves, plot_errors, plot_reliability, wilson
from lumbar_train.evaluation.scoring import level_difference, reliability


def evaluation(grades, answers, root) -> Evaluation:
    empty = pd.DataFrame()
    cohort = Cohort(root, "train", np.arange(len(grades)), grades, empty, empty)
    return Evaluation("out of fold", cohort, cohort.study_ids, grades, answers, {}, empty, empty)


@pytest.fixture
def grades():
    return np.random.default_rng(0).choice(3, (60, 25), p=(0.6, 0.25, 0.15)).astype(np.int8)


def sure_of(classes, share=0.8):
    return share * np.eye(3)[classes] + (1 - share) / 3


def test_auc_and_kappa_are_those_of_scikit_learn():
    from sklearn.metrics import cohen_kappa_score, roc_auc_score

    rng = np.random.default_rng(1)
    values, positive = np.round(rng.random(300), 1), rng.random(300) < 0.3
    grade, answer = rng.integers(0, 3, 300), rng.integers(0, 3, 300)
    weight = rng.integers(0, 4, (5, 300)).astype(float)
    for row, area, kappa in zip(
        weight, auc(positive, values, weight), quadratic_kappa(grade, answer, weight), strict=True
    ):
        assert area == pytest.approx(roc_auc_score(positive, values, sample_weight=row), abs=1e-12)
        known = cohen_kappa_score(grade, answer, weights="quadratic", sample_weight=row)
        assert kappa == pytest.approx(known, abs=1e-12)


def test_right_answers_rank_perfectly_and_constants_by_chance(grades):
    right = discrimination(grades, sure_of(grades, 0.95))
    constant = discrimination(grades, np.full((60, 25, 3), 1 / 3))
    for group, figures in right.items():
        assert list(figures) == list(FIGURES)
        assert all(figure.value == pytest.approx(1.0) for figure in figures.values())
        assert constant[group]["AUC of severe"].value == pytest.approx(0.5)
        assert constant[group]["quadratic kappa"].value == pytest.approx(0.0)
    noisy = discrimination(grades, sure_of(np.where(np.arange(60)[:, None] % 3 > 0, grades, 0)))
    for figure in noisy["foraminal"].values():
        assert figure.low < figure.value < figure.high


def test_labels_of_one_class_have_no_auc():
    figures = discrimination(np.zeros((4, 25), np.int8), np.full((4, 25, 3), 1 / 3))
    assert np.isnan(figures["spinal"]["AUC of severe"].value)


def test_an_answer_worse_than_the_prior_is_warned_of(grades, tmp_path):
    prior = np.tile(np.array([0.4, 0.3, 0.3]), (60, 25, 1))
    wrong = evaluation(grades, {"uniform": prior, "prior": prior, "chain": sure_of((grades + 1) % 3)}, tmp_path)
    lines = warnings(wrong)
    assert any(line.startswith("total: worse than the prior by ") for line in lines)
    assert "chance" not in lines[0]
    right = evaluation(grades, {"uniform": prior, "prior": prior, "chain": sure_of(grades)}, tmp_path)
    assert warnings(right) == []


def test_many_warnings_are_summed_up_in_one_line():
    lines = [
        "total: worse than the prior by 0.1 (95 % +0.0 to +0.2)",
        "foramina L1/L2: worse than the prior by 0.2 (x)",
    ]
    line = "2 figures are worse than the prior, which knows nothing of the study: total, foramina L1/L2"
    assert summed_up(lines) == line


def test_one_epoch_is_one_tick_and_no_legend_hides_a_curve():
    log = pd.DataFrame({"epoch": [0], "loss": [0.7], "val_loss": [0.8]})
    curves = plot_curves({"fold0": log, "full": log})
    assert curves.axes[0].get_xticks().tolist() == [1]
    more = pd.DataFrame({"epoch": [0, 1], "loss": [0.7, 0.6]})
    ticks = plot_curves({"fold0": more}).axes[0].get_xticks()
    assert all(tick == round(tick) for tick in ticks)
    errors = pd.DataFrame({"level": ["l1_l2", "l4_l5"], "error_mm": [3.0, 50.0], "disc_mm": [30.0, 35.0]})
    for figure in (curves, plot_errors(errors)):
        figure.draw_without_rendering()
        (legend,) = figure.legends
        tops = [axis.get_window_extent().y1 for axis in figure.axes]
        assert all(axis.get_legend() is None for axis in figure.axes)
        assert legend.get_window_extent().y0 >= max(tops)


def test_a_condition_that_is_worse_at_one_level_is_warned_of_though_the_total_is_better(grades, tmp_path):
    prior = np.tile(np.array([0.4, 0.3, 0.3]), (60, 25, 1))
    chain = sure_of(grades)
    foramina = [9, 14]  # left and right, L5/S1
    chain[:, foramina] = sure_of((grades[:, foramina] + 1) % 3)
    halfway = {"sagittal only": sure_of((grades + 1) % 3)}
    shown = evaluation(grades, {"uniform": prior, "prior": prior, **halfway, "chain": chain}, tmp_path)
    lines = warnings(shown)
    assert len(lines) == 2
    assert lines[0].startswith("foramina L5/S1: worse than the prior by ")
    assert lines[1].startswith("total of the answer sagittal only: worse than the prior by ")
    rows = dict(level_rows(shown))
    assert [kind for _, kind in rows["foramina"]] == ["good"] * 4 + ["bad"]
    assert [kind for _, kind in rows["spinal canal"]] == ["good"] * 5


def test_the_change_at_a_level_is_the_weighted_mean_of_its_columns(grades):
    prior, answer = np.tile(np.array([0.4, 0.3, 0.3]), (60, 25, 1)), sure_of(grades, 0.5)
    weights = np.array([1.0, 2.0, 4.0])[grades[:, [6, 11]]]  # both foramina at L2/L3
    losses = [
        -np.log(np.take_along_axis(p[:, [6, 11]], grades[:, [6, 11], None].astype(int), 2)[..., 0])
        for p in (answer, prior)
    ]
    expected = ((losses[0] - losses[1]) * weights).sum() / weights.sum()
    change = level_difference(grades, prior, answer)["foraminal", "l2_l3"]
    assert change.value == pytest.approx(expected, abs=1e-12)
    assert change.low < change.value < change.high
    none = np.full_like(grades, -1)
    assert level_difference(none, prior, answer) == {}


def test_the_top_of_the_page_says_what_was_trained_on_what(grades, tmp_path):
    run = tmp_path / "mine"
    run.mkdir()
    (run / "recipe.json").write_text(json.dumps({"name": "demo", "set": ["*.epochs=3"]}))
    (run / "seconds.json").write_text(json.dumps({"axial_xy": 60.0, "axial_all": 60.0, "machine": "x86, 2 threads"}))
    rows = dict(about(evaluation(grades, {"prior": sure_of(grades)}, tmp_path / "cohort"), run))
    assert rows["run"] == "mine"
    assert rows["recipe"] == "demo with *.epochs=3"
    assert rows["cohort"] == "cohort, 60 studies"
    assert rows["stages took"] == "2 min (x86, 2 threads)"
    assert len(rows["date"].split("-")) == 3


def test_the_same_reason_of_many_fits_is_one_sentence():
    rows = [{"stage": "axial_xy", "fold": f"fold{k}", "reason": "last weights: as asked"} for k in range(18)]
    assert grouped_reasons(rows) == ["All 18 fits: last weights: as asked."]
    rows.append({"stage": "axial_xy", "fold": "full", "reason": "nothing was held out"})
    assert len(grouped_reasons(rows)) == 2
    assert grouped_reasons(rows)[1] == "axial_xy full: nothing was held out."


def test_columns_are_named_as_radiologists_name_them():
    assert column_title(9) == "left foramen L5/S1"
    assert column_title(0) == "spinal canal L1/L2"


def test_bins_with_too_few_rows_are_not_drawn(grades):
    few = reliability(grades[:1], sure_of(grades[:1]), is_weighted=False)
    assert all(curve.rows.max() < 10 for curve in few if curve.group == "spinal")
    axes = plot_reliability(few).axes
    assert not axes[0].containers
    assert plot_reliability(reliability(grades, sure_of(grades), is_weighted=False)).axes[0].containers
    low, high = wilson(np.array([0.0, 0.5, 1.0]), np.array([10.0, 10.0, 10.0]))
    assert ((low >= -1e-12) & (high <= 1 + 1e-12)).all()
    assert low[1] == pytest.approx(0.2366, abs=1e-3)


def test_an_epoch_is_one_line_with_loss_held_out_figure_seconds_and_what_is_left():
    progress = Progress(
        epoch=2, history=[{"seconds": 10.0, "loss": 1.0}, {"seconds": 21.5, "loss": 0.5, "val_loss": 0.75}]
    )
    line = progress.line("axial_xy fold0", LoopConfig(epochs=4, epochs_beyond=10))
    assert line == (
        "axial_xy fold0, epoch 2 of 4: loss 0.5000, held out 0.7500, 11.5 s; the whole run: about 2 min left"
    )
    progress.epoch = 4
    assert progress.line("axial_xy fold0", LoopConfig(epochs=4)).endswith("11.5 s")
