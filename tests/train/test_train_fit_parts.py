"""The parts of a fit: what is counted, what moves the weights, what a fit's folder keeps."""

from __future__ import annotations

import json
from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch import nn

from lumbar_train.engine.distributed import Distributed
from lumbar_train.engine.fit_folder import FitFolder
from lumbar_train.engine.loop_config import LoopConfig
from lumbar_train.engine.optimisation import Optimisation
from lumbar_train.engine.progress import Progress
from lumbar_train.errors import TrainingError

CONFIG = LoopConfig(epochs=2, batch_size=4, progress=False)


def optimisation(config: LoopConfig = CONFIG) -> Optimisation:
    torch.manual_seed(0)
    return Optimisation(nn.Linear(3, 1), config, Distributed(), n_updates=10)


def gradients_of(parts: Optimisation, value: float) -> None:
    for parameter in parts.parameters:
        parameter.grad = torch.full_like(parameter, value)


# What is counted


def test_an_epochs_row_holds_means_by_weight_and_counts():
    progress = Progress()
    progress.add_step({"loss": 6.0, "accuracy": 2.0, "weight": 4.0, "samples": 8.0}, grad_norm=2.0)
    progress.add_step({"loss": 2.0, "accuracy": 0.0, "weight": 12.0, "samples": 8.0}, grad_norm=float("inf"))
    assert progress.step == 2
    row = progress.epoch_row(updates=2, lr=0.5)
    assert row["loss"] == 8 / 16
    assert row["accuracy"] == 2 / 16
    assert row["grad_norm"] == 8 / 16  # a step that was skipped has none
    assert (row["skipped"], row["steps"], row["samples"], row["updates"], row["lr"]) == (1, 2, 16, 2, 0.5)
    progress.end_epoch(row)
    assert (progress.epoch, progress.step, progress.totals, progress.history) == (1, 0, {}, [row])


def test_time_counts_over_resumes(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("lumbar_train.engine.progress.time.monotonic", lambda: clock[0])
    progress = Progress(started=100.0)
    clock[0] = 107.0
    assert progress.elapsed() == 7
    progress.save_time()
    clock[0] = 110.0
    assert progress.elapsed() == 10
    later = Progress(started=110.0)
    later.restore(progress.state())
    clock[0] = 111.0
    assert later.elapsed() == 8  # of the former process only what was saved


@pytest.mark.parametrize(
    ("is_higher_better", "values", "best_epoch"), [(False, [3, 1, 1, 2], 1), (True, [3, 1, 4, 4], 2)]
)
def test_the_best_epoch_is_the_first_with_the_best_value(is_higher_better, values, best_epoch):
    config = replace(CONFIG, is_higher_better=is_higher_better, monitor="score")
    progress = Progress()
    for value in values:
        progress.note_best({"score": float(value)}, config)
        progress.epoch += 1
    assert progress.best == {"score": float(values[best_epoch]), "epoch": float(best_epoch)}


# What moves the weights


def test_gradients_are_divided_by_the_weight_and_clipped():
    parts = optimisation(replace(CONFIG, clip_norm=None))
    gradients_of(parts, 1.0)
    norm = parts.clip_gradients(weight=8.0)  # sums of 4, the nominal batch, over a true weight of 8
    assert norm == pytest.approx(0.5 * 2)
    assert all(torch.allclose(p.grad, torch.tensor(0.5)) for p in parts.parameters)
    parts = optimisation(replace(CONFIG, clip_norm=0.1))
    gradients_of(parts, 1.0)
    assert parts.clip_gradients(weight=4.0) == pytest.approx(2.0)  # before clipping
    assert torch.cat([p.grad.flatten() for p in parts.parameters]).norm() == pytest.approx(0.1, rel=1e-3)


def test_a_weight_below_one_does_not_blow_gradients_up():
    parts = optimisation(replace(CONFIG, clip_norm=None))
    gradients_of(parts, 0.25)
    assert parts.clip_gradients(weight=1e-6) == pytest.approx(2.0)


def test_a_norm_that_is_not_finite_or_too_large_is_refused():
    parts = optimisation(replace(CONFIG, max_norm=5.0))
    assert parts.refusal(5.0) == ""
    assert parts.refusal(5.1) == "gradient norm is 5.1, expected at most 5"
    assert parts.refusal(float("nan")) == "gradient norm is nan, expected a finite number"


def test_a_loss_scaler_may_skip_a_few_steps_in_a_row(monkeypatch):
    parts = optimisation()
    monkeypatch.setattr(parts.scaler, "is_enabled", lambda: True)
    assert all(parts.refusal(float("inf")) == "" for _ in range(50))
    assert "gradient norm is inf" in parts.refusal(float("inf"))
    assert parts.refusal(1.0) == ""
    assert parts.skipped == 0


def test_averaged_weights_are_the_ones_that_are_kept():
    parts = optimisation(replace(CONFIG, ema_decay=0.9))
    assert parts.kept is not parts.model
    for _ in range(3):
        gradients_of(parts, 1.0)
        parts.clip_gradients(4.0)
        parts.step()
    assert parts.updates == 3
    assert not torch.equal(parts.kept.weight, parts.model.weight)
    plain = optimisation()
    assert plain.kept is plain.model


# What the folder keeps


def folder_of(path, config: LoopConfig = CONFIG, **identity) -> FitFolder:
    return FitFolder(path, config, {"fold": 0} | identity)


def finished(path) -> FitFolder:
    folder, progress = folder_of(path), Progress()
    progress.add_step({"loss": 1.0, "weight": 1.0, "samples": 1.0}, 1.0)
    progress.end_epoch(progress.epoch_row(1, 0.1))
    folder.write_log(progress.history)
    folder.write_checkpoint({"model": {}})
    folder.write_result(progress, nn.Linear(2, 1))
    return folder


def test_a_result_replaces_the_checkpoint_and_is_read_back(tmp_path):
    folder = finished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fit.json", "last.safetensors", "log.csv"]
    network = nn.Linear(2, 1)
    result = folder.read_result(network)
    assert result.weights == result.last == tmp_path / "last.safetensors"
    assert result.best is None
    assert result.metrics == {"epoch": 0.0}
    assert not network.training
    assert pd.read_csv(folder.log)["loss"].tolist() == [1.0]
    folder.clear()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("config", "identity", "message"),
    [
        (replace(CONFIG, lr=0.5), {}, r"made with lr 0\.0002, found 0\.5 now"),
        (CONFIG, {"fold": 1}, "made with fold 0, found 1 now"),
        (CONFIG, {"recipe": "demo"}, "made with recipe None, found 'demo' now"),
    ],
)
def test_other_settings_do_not_go_on_from_a_folder(tmp_path, config, identity, message):
    finished(tmp_path)
    other = folder_of(tmp_path, config, **identity)
    with pytest.raises(TrainingError, match=message):
        other.read_result(nn.Linear(2, 1))
    folder_of(tmp_path).write_checkpoint({"counters": [0, 0, 0, 0]})
    with pytest.raises(TrainingError, match=message):
        other.read_checkpoint()


def test_what_does_not_change_the_result_may_differ(tmp_path):
    finished(tmp_path)
    other = replace(CONFIG, workers=3, checkpoint_seconds=1.0, progress=True)
    assert folder_of(tmp_path, other).read_result(nn.Linear(2, 1)).reason.startswith("last weights")


def test_identities_are_compared_as_they_are_stored(tmp_path):
    """A path or a tuple comes back as text or a list."""
    folder = FitFolder(tmp_path, CONFIG, {"where": tmp_path, "folds": (1, 2)})
    folder.write_checkpoint({"counters": [0, 1, 1, 0]})
    assert folder.read_checkpoint()["counters"] == [0, 1, 1, 0]
    assert json.loads(json.dumps(folder.identity)) == folder.identity
