"""The held-out loss beside the training loss: shown, logged, and without any effect on what is trained."""

import pandas as pd
import torch
from safetensors.torch import load_file

import train_tiny
from lumbar_train.stages import fitting

SOME = ("--stages", "sagittal_xy,axial_xy", "--folds", "0,full", "--set", "*.epochs=2")


def test_every_epoch_has_a_held_out_loss_and_the_weights_are_those_without_it(
    tiny_cohort, tmp_path, monkeypatch, capsys
):
    assert train_tiny.train(tiny_cohort, tmp_path / "with", *SOME) == 0
    said = capsys.readouterr().out
    log = pd.read_csv(tmp_path / "with/sagittal_xy/fold0/log.csv")
    assert log["val_loss"].notna().tolist() == [True, True]
    assert "val_loss" not in pd.read_csv(tmp_path / "with/sagittal_xy/full/log.csv")
    assert said.count("axial_xy fold0, epoch ") == 2
    assert ", held out 0." in said
    assert "4 fits of 2 stages, 8 epochs in all, 1 fit at a time; the first epoch of each stage tells" in said
    monkeypatch.setattr(fitting, "held_out_loss", lambda *_: None)
    assert train_tiny.train(tiny_cohort, tmp_path / "without", *SOME) == 0
    for name in ("sagittal_xy/fold0", "axial_xy/fold0", "axial_xy/full"):
        one, other = (load_file(tmp_path / run / f"{name}.safetensors") for run in ("with", "without"))
        assert all(torch.equal(one[key], other[key]) for key in one), name
