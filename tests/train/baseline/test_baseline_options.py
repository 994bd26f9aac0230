"""Options of a baseline run: settings, columns, folds, and the folder that it may use."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from lumbar.config import BackboneConfig
from lumbar.errors import CohortError
from lumbar.labels import COLUMNS
from lumbar_train.baseline import command
from lumbar_train.baseline.predict import predict_split
from lumbar_train.baseline.run import (
    BaselineRun,
    check_run_folder,
    choose_folds,
    fit_all,
    jobs_of,
    without_unlisted,
)
from lumbar_train.baseline.settings import SMALL, Settings, check_settings, choose_columns
from lumbar_train.baseline.tune import Batches, Phase, Samples, extra_epoch, train_until
from lumbar_train.data.folds import FULL
from lumbar_train.data.tables import Cohort
from lumbar_train.errors import LeakError, TrainingError

STUDIES = np.arange(1, 13)


def cohort(tmp_path):
    labels = np.tile((STUDIES % 3)[:, None], (1, 25)).astype(np.int8)
    series = pd.DataFrame({"study_id": STUDIES, "series_id": STUDIES * 10, "series_description": "Sagittal T1"})
    points = pd.DataFrame({"study_id": pd.Series([], dtype=np.int64)})
    return Cohort(tmp_path, "train", STUDIES, labels, points, series)


def folds_table(path, studies=STUDIES, n_folds=3):
    pd.DataFrame({"study_id": studies, "fold": np.arange(len(studies)) % n_folds}).to_csv(path, index=False)
    return path


def run_of(tmp_path, **options):
    folds = pd.DataFrame({"study_id": STUDIES, "fold": STUDIES % 2})
    return BaselineRun(cohort(tmp_path), tmp_path / "run", Settings(), list(COLUMNS[:2]), folds, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"description": "Coronal"}, "--description: found 'Coronal', expected one of Sagittal T1"),
        ({"size": 31}, "--size: found 31, expected 32 or more"),
        ({"slices": -1}, "--slices: found -1, expected 0 or more"),
        ({"epochs": 0}, "--epochs: found 0, expected 1 or more"),
        ({"freeze_epochs": -1}, "--freeze-epochs: found -1, expected 0 or more"),
        ({"batch_size": 1}, "--batch-size: found 1, expected 2 or more"),
        ({"finder_steps": 9}, "--finder-steps: found 9, expected 10 or more"),
        ({"stop_accuracy": 1.0}, r"--stop-accuracy: found 1.0, expected 0 \(off\) to below 1"),
        ({"stop_accuracy": -0.1}, r"--stop-accuracy: found -0.1, expected"),
        ({"max_epochs": 3}, "--max-epochs: found 3, expected --epochs 4 or more"),
    ],
)
def test_settings_out_of_range_are_refused(change, message):
    check_settings(Settings())
    with pytest.raises(CohortError, match=message):
        check_settings(replace(Settings(), **change))


def test_pretrained_bodies_learn_slowly_and_others_do_not_unless_asked():
    assert Settings().body_lr_mult == 1
    assert Settings(pretrained=True).body_lr_mult == 100
    assert Settings(pretrained=True, lr_mult=7.0).body_lr_mult == 7


def test_the_network_follows_the_settings():
    config = Settings(arch="small", size=64, slices=5).network(COLUMNS[3], (0.5, 0.25, 0.25))
    assert (config.backbone, config.column, config.size, config.slices) == (SMALL, COLUMNS[3], 64, 5)
    assert config.balance == (0.5, 0.25, 0.25)
    assert Settings(arch="resnet18").network(COLUMNS[0]).backbone == BackboneConfig("resnet18")


def test_columns_are_named_alone_or_by_condition_in_the_order_of_the_table():
    assert choose_columns(None) == list(COLUMNS)
    assert choose_columns(f"{COLUMNS[7]}, {COLUMNS[1]}") == [COLUMNS[1], COLUMNS[7]]
    assert choose_columns("right_subarticular_stenosis,spinal_canal_stenosis") == [*COLUMNS[:5], *COLUMNS[20:]]
    with pytest.raises(CohortError, match="--columns: found 'spinal', expected label columns"):
        choose_columns("spinal")


def test_folds_are_three_by_default_or_as_many_as_asked(tmp_path):
    for text, n in ((None, 3), ("2", 2)):
        chosen, folds = choose_folds(text, tmp_path, cohort(tmp_path), 0)
        assert folds["fold"].nunique() == n
        assert sorted(folds["study_id"]) == list(chosen.study_ids) == list(STUDIES)


def test_a_resumed_run_keeps_its_folds(tmp_path):
    folds_table(tmp_path / "folds.csv", n_folds=4)
    assert choose_folds(None, tmp_path, cohort(tmp_path), 0)[1]["fold"].nunique() == 4
    assert choose_folds("4", tmp_path, cohort(tmp_path), 0)[1]["fold"].nunique() == 4
    with pytest.raises(CohortError, match="holds 4 folds, --folds says 3; expected the same"):
        choose_folds("3", tmp_path, cohort(tmp_path), 0)


def test_a_table_of_folds_decides_which_studies_count(tmp_path):
    table = folds_table(tmp_path / "given.csv", STUDIES[:9])
    chosen, folds = choose_folds(str(table), tmp_path / "run", cohort(tmp_path), 0)
    assert list(chosen.study_ids) == list(STUDIES[:9]) == folds["study_id"].tolist()
    assert chosen.dropped["studies: not in given.csv"] == 3


def test_a_table_that_lists_nothing_of_the_cohort_is_left_to_the_check_of_the_table(tmp_path):
    data = cohort(tmp_path)
    assert without_unlisted(data, folds_table(tmp_path / "others.csv", STUDIES + 100)) is data
    assert without_unlisted(data, tmp_path / "absent.csv") is data
    with pytest.raises((CohortError, LeakError), match="others"):
        choose_folds(str(tmp_path / "others.csv"), tmp_path / "run", data, 0)


def test_a_folder_with_fits_or_with_a_chain_is_refused(tmp_path):
    run = run_of(tmp_path)
    check_run_folder(run)
    (run.out / "fits").mkdir(parents=True)
    with pytest.raises(CohortError, match="holds fits, add --resume to go on with it"):
        check_run_folder(run)
    run.resume = True
    check_run_folder(run)
    for text in ('{"name": "demo"}', "{", "[]"):
        (run.out / "recipe.json").write_text(text)
        with pytest.raises(CohortError, match="expected a folder of its own for the baseline"):
            check_run_folder(run)
    (run.out / "recipe.json").write_text('{"name": "baseline"}')
    check_run_folder(run)


def test_fits_on_all_data_come_last_and_hold_nothing_out(tmp_path):
    jobs = jobs_of(run_of(tmp_path))
    assert [(job.fold, job.column) for job in jobs] == [(f, c) for f in (0, 1, FULL) for c in COLUMNS[:2]]
    assert all(job.held_out == {s for s in range(1, 13) if s % 2 == job.fold} for job in jobs[:4])
    assert jobs[-1].held_out == frozenset()
    assert jobs[-1].folder == tmp_path / "run" / "fits" / COLUMNS[1] / "full"
    assert len(jobs_of(run_of(tmp_path, with_full=False))) == 4


def test_a_run_in_which_no_fit_learns_anything_ends(tmp_path, monkeypatch):
    run = run_of(tmp_path)
    (run.work).mkdir(parents=True)
    (run.work / "images.json").write_text('{"key": "k"}')
    constant = {"status": "constant", "reason": "found no label among 0 training images, expected two or more"}
    monkeypatch.setattr("lumbar_train.baseline.run.run_fit", lambda job: constant)
    with pytest.raises(TrainingError, match="no fit found two classes: found no label"):
        fit_all(run)


def test_prediction_without_an_export_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="export: not found, expected a baseline run with its fits on all data"):
        predict_split(tmp_path, tmp_path, "test", batch=10, start_batch=0)


class Tuning:
    """Stands in for a fit whose accuracy rises by 0.1 an epoch."""

    def __init__(self):
        self.epoch, self.ran = 0, []

    def run(self, cycles):
        total = sum(cycle.epochs for cycle in cycles)
        self.ran.append(cycles[-1].name)
        self.epoch = max(self.epoch, total)

    def accuracy(self):
        return 0.1 * self.epoch


def test_a_fit_goes_on_until_its_accuracy_is_reached_or_no_epoch_is_left():
    def until(target, max_added):
        tuning = Tuning()
        cycles = [Phase("all", 3, (1.0, 1.0, 1.0), 0.3, 5.0, False)]
        reached = train_until(tuning, cycles, tuning.accuracy, target, lambda k: extra_epoch(1.0, 1.0, k), max_added)
        return reached, tuning.ran

    assert until(0.25, 9) == ((pytest.approx(0.3), 0), ["all"])
    assert until(0.45, 9) == ((pytest.approx(0.5), 2), ["all", "more 1", "more 2"])
    assert until(0.9, 4) == ((pytest.approx(0.7), 4), ["all", "more 1", "more 2", "more 3", "more 4"])


def test_batches_are_whole_seeded_and_cover_the_rows():
    rows = np.array([0, 1, 2, 3, 3, 3, 4])
    images = np.arange(5, dtype=np.uint8)[:, None, None] * np.ones((1, 32, 32), np.uint8)
    samples = Samples(images, np.array([0, 1, 2, 1, 0]), rows)
    batches = Batches(samples, 3, torch.device("cpu"))
    assert len(batches) == 2  # the seventh image waits for another epoch
    first = torch.cat([batches.batch(5, 0, step)[1] for step in range(2)])
    again = torch.cat([batches.batch(5, 0, step)[1] for step in range(2)])
    assert torch.equal(first, again)
    others = [torch.cat([batches.batch(5, epoch, step)[1] for step in range(2)]) for epoch in range(1, 6)]
    assert any(not torch.equal(first, other) for other in others)
    assert len(Batches(samples, 100, torch.device("cpu"))) == 1
    assert batches.batch(5, 0, 0)[0].shape == (3, 1, 32, 32)


def test_the_command_takes_its_folds_from_the_chain(tmp_path, monkeypatch):
    asked = []

    def choose(text, *rest):
        asked.append(text)
        raise CohortError("enough seen")

    (tmp_path / "chain").mkdir()
    (tmp_path / "train_images").mkdir()
    (tmp_path / "train_series_descriptions.csv").touch()
    monkeypatch.setattr("lumbar_train.data.tables.read_cohort", lambda root: cohort(tmp_path))
    monkeypatch.setattr("lumbar_train.baseline.run.choose_folds", choose)
    args = SimpleNamespace(split="train", data=tmp_path, out=tmp_path, columns=None, folds=None,
                           chain_run=tmp_path / "chain", description="Sagittal T1", resume=False,
                           amp="auto")  # fmt: skip
    for args.folds, expected in ((None, str(tmp_path / "chain" / "folds.csv")), ("4", "4")):
        with pytest.raises(CohortError, match="enough seen"):
            command.run_baseline(args)
        assert asked[-1] == expected
