"""A CPU without units for bf16 trains in float32, whatever was asked for; the choice is made once a run."""

import json

import pytest
import torch

import train_tiny
from lumbar_train.engine import precision
from lumbar_train.engine.loop_config import LoopConfig, amp_dtype

CPU = torch.device("cpu")


def on_a_cpu(monkeypatch, gain: float) -> list[float]:
    """As if bf16 were so many times as fast as float32; notes each measurement."""
    asked: list[float] = []
    monkeypatch.setattr(precision, "bf16_gain", lambda: asked.append(gain) or gain)
    return asked


@pytest.mark.parametrize(
    ("asked", "gain", "used", "said"),
    [
        ("bf16", 0.0, "off", "this CPU has no units for bf16; float32 is used"),
        ("bf16", 0.05, "off", "this CPU computes 20.0 times as fast in float32; float32 is used"),
        ("bf16", 1.3, "bf16", ""),
        ("auto", 0.0, "auto", ""),
        ("auto", 1.02, "auto", ""),
        ("auto", 1.8, "bf16", "bf16, which this CPU computes 1.8 times as fast as float32"),
    ],
)
def test_the_faster_precision_of_the_cpu_is_used(asked, gain, used, said, monkeypatch, tmp_path):
    on_a_cpu(monkeypatch, gain)
    amp, line = precision.chosen_amp(asked, CPU, tmp_path / "recipe.json", resume=False)
    assert amp == used
    assert said in line
    assert bool(line) == bool(said)
    expected = torch.bfloat16 if used == "bf16" else None
    assert amp_dtype(LoopConfig(amp=amp), CPU) == expected


def test_other_words_and_gpus_are_not_measured(monkeypatch, tmp_path):
    measured = on_a_cpu(monkeypatch, 9.0)
    for asked, device in (("off", "cpu"), ("fp16", "cpu"), ("auto", "cuda"), ("bf16", "cuda")):
        assert precision.chosen_amp(asked, torch.device(device), tmp_path / "r.json", resume=False) == (asked, "")
    assert measured == []


def test_the_choice_is_noted_and_kept_on_resume(tiny_cohort, tmp_path, monkeypatch, capsys):
    measured = on_a_cpu(monkeypatch, 0.05)
    run = tmp_path / "run"
    some = ("--stages", "axial_xy", "--folds", "0", "--set", "axial_xy.epochs=1", "--amp", "bf16")
    assert train_tiny.train(tiny_cohort, run, *some) == 0
    assert "--amp bf16: this CPU computes 20.0 times as fast in float32" in capsys.readouterr().out
    assert json.loads((run / "recipe.json").read_text())["amp"] == {"asked": "bf16", "used": "off"}
    assert json.loads((run / "axial_xy/fold0/fit.json").read_text())["config"]["amp"] == "off"
    on_a_cpu(monkeypatch, 1.9)
    assert train_tiny.train(tiny_cohort, run, *some, "--resume") == 0
    assert "--amp" not in capsys.readouterr().out
    assert json.loads((run / "recipe.json").read_text())["amp"] == {"asked": "bf16", "used": "off"}
    assert len(measured) == 1


def test_a_run_of_before_the_choice_was_noted_goes_on_as_it_began(monkeypatch, tmp_path):
    measured = on_a_cpu(monkeypatch, 9.0)
    (tmp_path / "recipe.json").write_text('{"name": "demo"}')
    assert precision.chosen_amp("auto", CPU, tmp_path / "recipe.json", resume=True) == ("auto", "")
    assert measured == []


def test_measuring_draws_no_random_numbers_and_gives_a_ratio(monkeypatch):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    monkeypatch.setattr(precision, "has_bf16_units", lambda: True)
    assert 0 < precision.bf16_gain() < 1000
    assert torch.equal(torch.get_rng_state(), before)


def test_a_cpu_of_which_torch_sees_no_units_is_not_measured(monkeypatch):
    for name in precision._CHECKS:
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    monkeypatch.setattr(precision, "_seconds", None)
    assert precision.bf16_gain() == 0.0
