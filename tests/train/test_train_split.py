"""Batches of a run that is made in several calls: fits that have begun keep their cut, others follow the call."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import train_tiny
from lumbar_train.data.tables import read_cohort
from lumbar_train.engine.distributed import Distributed
from lumbar_train.errors import TrainingError
from lumbar_train.outputs.kept import write_recipe
from lumbar_train.overrides import with_overrides
from lumbar_train.pipeline.counts import count_cohort
from lumbar_train.pipeline.options import TrainOptions
from lumbar_train.pipeline.split import choose_split, cost_of, losses_of, with_split
from lumbar_train.recipes import Recipe
from lumbar_train.stages.denoise import DenoiseConfig

STAGES = ("axial_xy", "sagittal_z", "axial_all")


def recipe_of(options: TrainOptions) -> Recipe:
    tiny = train_tiny.tiny()
    some = {name: tiny.stages[name] for name in (*STAGES, "aggregator")}
    return with_overrides(replace(tiny, stages=some, denoise=DenoiseConfig()), options.overrides)


def cut(options: TrainOptions, device: str = "cpu") -> dict[str, int]:
    """The parts of each entry's batch; the recipe is noted in the run folder, as ``train`` notes it."""
    cohort = read_cohort(options.data, check_images=False)
    recipe = with_split(options, recipe_of(options), cohort, Distributed(device=torch.device(device)))
    write_recipe(options.out, recipe, 0, options.changes())
    return {name: recipe.stages[name].fit.accumulate for name in STAGES}


def needed(options: TrainOptions, name: str, *, is_gpu: bool = False) -> float:
    """Bytes that an entry's whole batch takes."""
    recipe, counts = recipe_of(options), count_cohort(read_cohort(options.data, check_images=False))
    cost = cost_of(recipe.stages[name], losses_of(recipe)[name], counts, is_half=is_gpu)
    return choose_split(recipe.stages[name], cost, counts, 1e15, is_half=is_gpu, is_gpu=is_gpu).need_bytes


def begin(run: Path, fit: str) -> None:
    (run / fit).mkdir(parents=True)
    (run / fit / "checkpoint.pt").touch()


@pytest.fixture
def options(tiny_cohort, tmp_path) -> TrainOptions:
    return TrainOptions(data=tiny_cohort, out=tmp_path, recipe="tiny", stages=("axial_xy",), amp="off")


def test_a_stage_without_a_fit_is_cut_in_a_later_call_and_one_with_a_fit_keeps_its_cut(options, capsys):
    wide = f"{needed(options, 'axial_xy') - 1:.0f}"
    first = cut(replace(options, memory=wide))
    assert first == {"axial_xy": 2, "sagittal_z": 1, "axial_all": 1}
    begin(options.out, "axial_xy/fold0")
    again = replace(options, resume=True, stages=("axial_xy", "sagittal_z"))
    capsys.readouterr()
    tight = f"{needed(options, 'sagittal_z') - 1:.0f}"
    second = cut(replace(again, memory=tight))
    assert (second["axial_xy"], second["axial_all"]) == (2, 1)
    assert second["sagittal_z"] > 1
    said = capsys.readouterr().out
    assert "sagittal_z: batch of 4 in " in said
    assert "axial_xy" not in said
    assert cut(again) == second, "without a memory to cut to, all is as noted"
    assert cut(replace(again, memory="1TB")) == second | {"sagittal_z": 1}, "no fit of it has begun yet"


def test_the_rounds_of_a_classifier_share_one_cut(options):
    options = replace(options, stages=("axial_all-first",), memory=f"{needed(options, 'axial_all') - 1:.0f}")
    first = cut(options)
    assert first["axial_all"] > 1
    begin(options.out, "axial_all-first/fold1")
    assert cut(replace(options, stages=("axial_all",), memory="1TB", resume=True)) == first


def test_fitting_a_stage_anew_leaves_the_cut_of_others(options):
    first = cut(replace(options, memory=f"{needed(options, 'axial_xy') - 1:.0f}"))
    begin(options.out, "axial_xy/fold0")
    anew = replace(options, overwrite=True, stages=("sagittal_z",), overrides=("sagittal_z.accumulate=3",))
    assert cut(anew) == first | {"sagittal_z": 3}
    assert cut(replace(options, overwrite=True))["axial_xy"] == 1


def test_set_changes_the_noted_cut_of_the_stages_that_it_names_alone(options):
    words = tuple(f"{name}.accumulate={k}" for k, name in enumerate(STAGES, 2))
    noted = cut(replace(options, overrides=words))
    assert noted == {"axial_xy": 2, "sagittal_z": 3, "axial_all": 4}
    again = replace(options, resume=True)
    assert cut(replace(again, overrides=("sagittal_z.accumulate=1",))) == noted | {"sagittal_z": 1}
    assert cut(replace(again, overrides=("axial_xy.checkpointing=true",))) == noted | {"sagittal_z": 1}
    assert cut(replace(again, overrides=("axial_all.fit.accumulate=2",))) == noted | {"sagittal_z": 1, "axial_all": 2}
    assert cut(replace(again, overrides=("*.accumulate=4",))) == dict.fromkeys(STAGES, 4)


def test_the_same_set_in_a_later_call_leaves_what_memory_cut_further(options):
    """The command that goes on with a run repeats every option."""
    options = replace(options, overrides=("axial_xy.accumulate=2",))
    first = cut(replace(options, memory=f"{needed(options, 'axial_xy') - 1:.0f}"))
    assert first["axial_xy"] > 2
    begin(options.out, "axial_xy/full")
    assert cut(replace(options, resume=True)) == first


def test_what_a_gpu_has_free_is_shared_by_the_fits_that_run_on_it(options, monkeypatch):
    need = needed(options, "axial_xy", is_gpu=True)
    options = replace(options, amp="auto")
    monkeypatch.setattr("lumbar_train.pipeline.split.free_memory", lambda device: 2 * need - 1)
    gpus = [torch.device("cuda", k) for k in range(2)]
    parts = {}
    for n in (1, 2):
        monkeypatch.setattr("lumbar_train.pipeline.split.usable_devices", lambda name, n=n: tuple(gpus[:n]))
        parts |= {(n, jobs): cut(replace(options, jobs=jobs), "cuda")["axial_xy"] for jobs in (n, n + 1)}
    assert parts == {(1, 1): 1, (1, 2): 2, (2, 2): 1, (2, 3): 2}
    assert cut(replace(options, jobs=3, memory=f"{need + 1:.0f}"), "cuda")["axial_xy"] == 1, "as it is said"
    with pytest.raises(TrainingError, match=r"0.5 GiB of memory for each of 4 fits on a GPU \(--jobs\), expected"):
        cut(replace(options, jobs=8), "cuda")


def parts_of(run: Path) -> dict[str, int]:
    stages = json.loads((run / "recipe.json").read_text())["stages"]
    return {name: stages[name]["fit"]["accumulate"] for name in ("sagittal_xy", "sagittal_z", "axial_xy")}


def test_a_run_made_stage_by_stage_is_cut_in_every_call_and_goes_on(tiny_cohort, tmp_path, monkeypatch):
    train_tiny.quick(monkeypatch)
    run, words = tmp_path / "run", ["--set", "*.epochs=1", "--set", "sagittal_xy.repeats=1", "--folds", "0,1"]
    assert train_tiny.train(tiny_cohort, run, *words, "--stages", "sagittal_xy", "--memory", "5MiB") == 0
    first = parts_of(run)
    assert first["sagittal_xy"] > 1
    assert (first["sagittal_z"], first["axial_xy"]) == (1, 1)
    more = ["--stages", "sagittal_xy,sagittal_z", "--folds", "0,1,full", "--resume", "--memory", "6MiB"]
    assert train_tiny.train(tiny_cohort, run, *words, *more) == 0
    second = parts_of(run)
    assert second["sagittal_xy"] == first["sagittal_xy"]
    assert second["sagittal_z"] > 1
    for stage, fold in (("sagittal_xy", "fold0"), ("sagittal_xy", "full"), ("sagittal_z", "fold0")):
        config = json.loads((run / stage / fold / "fit.json").read_text())["config"]
        assert config["accumulate"] == second[stage], (stage, fold)
