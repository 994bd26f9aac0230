"""Benchmarks that need inputs: without them each says so in one line, and ``make bench`` goes on."""

from __future__ import annotations

import ast
import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from lumbar_train.data.folds import write_folds
from lumbar_train.pipeline.options import TrainOptions

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch, tmp_path):
    """Imports a benchmark, in a folder without anything that one could find by chance."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    yield importlib.import_module
    sys.path[:] = path


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*.py")), ids=lambda path: path.name)
def test_no_benchmark_requires_an_option(path):
    """``make bench`` gives none."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    for call in calls:
        if isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument":
            assert not any(keyword.arg == "required" for keyword in call.keywords), ast.unparse(call)
            assert ast.literal_eval(call.args[0]).startswith("--")


@pytest.mark.parametrize(
    "name",
    [
        "ablations",
        "calibrate_grades",
        "calibrate_numbering",
        "calibrate_points",
        "hard_phantoms",
        "prediction_picture",
        "real_spines",
        "small_recipes",
        "whole_studies",
    ],
)
def test_without_its_inputs_a_benchmark_says_so_in_one_line_and_ends_well(
    benchmark, monkeypatch, tmp_path, capsys, name
):
    monkeypatch.setattr(benchmark("real_spines"), "REAL", tmp_path / "real")
    assert benchmark(name).main([]) == 0
    out, errors = capsys.readouterr()
    assert out.startswith(f"{name}: no ")
    assert (out.count("\n"), errors) == (1, "")
    assert list(tmp_path.iterdir()) == []


def test_real_images_without_a_bundle_are_not_measured(benchmark, monkeypatch, tmp_path, capsys):
    (tmp_path / "real/spider_slices").mkdir(parents=True)
    monkeypatch.setattr(benchmark("real_spines"), "REAL", tmp_path / "real")
    assert benchmark("real_spines").main([]) == 0
    assert "no bundle in dist/dataset (make seal) and no --weights given" in capsys.readouterr().out


def test_cohorts_of_the_same_patients_do_not_judge_each_other(benchmark, tmp_path, capsys):
    for name in ("noise", "resolution"):
        (tmp_path / name / "train_images/17/1").mkdir(parents=True)
        table = "study_id,series_id,series_description\n17,1,Axial T2\n"
        (tmp_path / name / "train_series_descriptions.csv").write_text(table)
    with pytest.raises(SystemExit):
        benchmark("calibrate_grades").main(["--data", "noise", "resolution", "--weights", "w"])
    assert "found study 17 in two cohorts, expected other patients in each" in capsys.readouterr().err


# ---- ablations ----------------------------------------------------------------------------------------------------

OWN = {"network": {"share_sides": False}, "fit": {"lr": 0.001}, "augment": {"turn_deg": 30.0}}


@pytest.fixture
def ablations(benchmark) -> ModuleType:
    return benchmark("ablations")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What a run notes of itself: its recipe, its folds, and the command that goes on with it."""
    import pandas as pd

    folder = tmp_path / "my run"
    options = TrainOptions.of(
        data="old", out=folder, recipe="strong", backbone="resnet18", full_epochs={"axial_all": 3}, seed=7,
        overrides={"axial_all.size": 96}, pretrained=True, resume=True, time_limit="9h", jobs=3,
    )  # fmt: skip
    write_folds(folder / "folds.csv", pd.DataFrame({"study_id": [4, 5, 6], "fold": [0, 1, 2]}))
    (folder / "session.json").write_text(json.dumps({"command": options.whole_command()}))
    (folder / "recipe.json").write_text(json.dumps({"stages": {"axial_all": OWN}}))
    return folder


@pytest.mark.parametrize("stage", ["sagittal_classifier", "axial_all"])
def test_every_variant_changes_the_recipe_and_takes_the_other_augmentation(ablations, stage):
    from lumbar_train.overrides import with_overrides
    from lumbar_train.recipes import demo, strong

    milder = [f"{stage}.{word}" for word in ("share_sides=true", "turn_deg=10", "uniform=false")]
    for recipe, other, sides in (
        (strong(), demo().stages[stage].augment, "one network"),
        (with_overrides(strong(), milder), strong().stages[stage].augment, "two networks"),
    ):
        before = recipe.stages[stage]
        sides_own, turn_own = {"share_sides": before.network.share_sides}, {"turn_deg": before.augment.turn_deg}
        given = ablations.variants(stage, {"network": sides_own, "fit": {"lr": 0.001}, "augment": turn_own})
        assert any(variant.name.startswith(sides) for variant in given)
        for variant in given:
            changed = with_overrides(recipe, variant.words)
            assert changed != recipe, variant.name
            if "augmentation" in variant.name:
                stays = {"on_device": other.on_device, "keep_slices": other.keep_slices}
                assert replace(changed.stages[stage].augment, **stays) == other


def test_a_variant_is_trained_by_the_runs_own_command_with_one_thing_changed(ablations, run, tmp_path):
    from lumbar_train.__main__ import _parser

    variant = ablations.variants("axial_all", OWN)[1]
    words = ablations.words_of(run, Path("new"), "axial_all", variant, tmp_path / "out/one", None)
    args = _parser().parse_args(words)
    assert (args.data, args.out, args.recipe) == (Path("new"), tmp_path / "out/one", "strong")
    assert (args.backbone, args.full_epochs, args.seed, args.pretrained) == ("resnet18", ["axial_all=3"], 7, True)
    assert args.overrides == ["axial_all.size=96", "axial_all.cutmix=0", "axial_all.mixup=0"]
    assert (args.stages, args.folds, args.overwrite, args.resume) == ("axial_all", "0,1,2", True, False)
    assert (args.time_limit, args.jobs) == (None, 3)
    assert args.cache == tmp_path / "out/cache"
    (run / "cache").mkdir()
    for given, cache in ((None, run / "cache"), (Path("other"), Path("other"))):
        words = ablations.words_of(run, Path("new"), "axial_all", variant, tmp_path / "out/one", given)
        assert _parser().parse_args(words).cache == cache


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only", "no denoising,no luck"], "--only: found no luck, expected of rate x 1.05, no CutMix and no mixup"),
        (["--stage", "axial"], "--stage: found axial, expected one of axial_all"),
        ([], "session.json: found no command of train, expected the one that the run was trained with"),
    ],
)
def test_what_cannot_be_repeated_is_refused_in_one_line(ablations, run, tmp_path, words, said):
    (run / "session.json").write_text("{}")
    with pytest.raises(SystemExit) as end:
        ablations.main(["--run", str(run), "--data", str(tmp_path), *words])
    assert said in str(end.value)
    assert "\n" not in str(end.value)
    assert not (tmp_path / "my run-ablations").exists()


def test_a_variant_that_answers_fewer_conditions_is_scored_on_what_both_answer(ablations, monkeypatch):
    labels = np.random.default_rng(0).choice(3, (60, 25), p=[0.6, 0.3, 0.1])
    true, uniform = np.eye(3)[labels], np.full((60, 25, 3), 1 / 3)
    every, fewer = np.ones((60, 25), bool), np.broadcast_to(np.arange(25) < 15, (60, 25))
    given = {"run": (0.5 * true + 0.5 * uniform, every), "fewer": (uniform, fewer), "all": (uniform, every)}
    monkeypatch.setattr(ablations, "answers", lambda folder, *_: given[folder])
    cohort = SimpleNamespace(study_ids=range(60), labels=labels)
    line = ablations.row_of("one", cohort, "run", "fewer", "sagittal_classifier")
    assert line.startswith("| one (of spinal, foraminal, any_severe) | ")
    assert line.endswith("| helps |")
    assert "nan" not in line
    assert ablations.row_of("one", cohort, "run", "all", "axial_all").startswith("| one | ")


# ---- numbering ----------------------------------------------------------------------------------------------------


def evidence_that_tells(rng, truth, *columns_of_readings):
    """Evidence (n, 10) of noise, lower in some columns for each reading that is no longer as read."""
    evidence = rng.normal(2, 1, (len(truth), 10))
    for reading, columns in columns_of_readings:
        evidence[np.ix_(truth == reading, columns)] -= 3
    return evidence


def test_the_fit_reads_the_evidence_as_the_kernel_does_and_leaves_out_what_is_not_told(benchmark):
    from lumbar.stages.numbering import NUMBERS, Evidence, asks_for_looks, numbering_of

    calibrate, rng = benchmark("calibrate_numbering"), np.random.default_rng(0)
    truth = rng.choice(4, 400, p=[0.7, 0.1, 0.1, 0.1])
    evidence = evidence_that_tells(rng, truth, (0, (7, 8, 9)), (1, (0, 2, 5)), (2, (1, 3, 6)), (3, (4,)))
    for kept, n_numbers in ((slice(0, 10), 7), (slice(0, 7), 6), (slice(0, 5), 5)):
        some = np.zeros_like(evidence)
        some[:, kept] = evidence[:, kept]
        numbers = calibrate.as_told(calibrate.fit(some, truth))
        assert len(numbers) == n_numbers
        assert asks_for_looks(numbers) == (n_numbers == len(NUMBERS))
        heat, sacrum, (height,), first, looks = np.split(some[0], (2, 4, 5, 7))
        told = numbering_of(Evidence(tuple(heat), tuple(sacrum), height, tuple(first), tuple(looks)), numbers)
        (shares,) = calibrate.probabilities(np.array(numbers), some[:1])
        np.testing.assert_allclose(shares, [told.confidence, told.one_higher, told.one_lower, told.elsewhere])


def test_looks_without_s1_keep_their_place_among_the_numbers(benchmark):
    calibrate, rng = benchmark("calibrate_numbering"), np.random.default_rng(2)
    truth = rng.choice(4, 400, p=[0.7, 0.1, 0.1, 0.1])
    evidence = evidence_that_tells(rng, truth, (0, (7, 8, 9)), (1, (0, 2)), (2, (1, 3)), (3, (4,)))
    numbers = calibrate.as_told(calibrate.fit(calibrate.without("S1", evidence), truth))
    assert len(numbers) == 7
    assert numbers[5] == 0.0
    assert numbers[6] > 0.0  # votes for another reading make it likelier


@pytest.mark.parametrize(("part", "readings"), [("S1", ((1, (5,)), (2, (6,)))), ("looks", ((0, (7, 8, 9)),))])
def test_what_a_part_is_worth_is_told_from_nothing(benchmark, part, readings):
    calibrate, rng = benchmark("calibrate_numbering"), np.random.default_rng(1)
    truth, patients = rng.choice(4, 400, p=[0.7, 0.1, 0.1, 0.1]), np.arange(400) // 2
    mean, low, high = calibrate.worth_of(part, evidence_that_tells(rng, truth), truth, patients)
    assert low <= mean <= high
    assert high > 0.0  # noise cannot help
    _, _, high = calibrate.worth_of(part, evidence_that_tells(rng, truth, *readings), truth, patients)
    assert high < -0.1


# ---- whole studies ------------------------------------------------------------------------------------------------


def test_a_column_one_disc_too_high_is_off_by_one(benchmark):
    whole = benchmark("whole_studies")
    from lumbar.labels import LEVELS

    true = np.column_stack([np.zeros(5), np.zeros(5), 35.0 * np.arange(5, 0, -1)])
    near = {level: tuple(true[k] + (3, -4, 9)) for k, level in enumerate(LEVELS)}
    assert whole.read_off(near, true) == (True, 0)
    higher = {level: tuple(true[k] + (0, 0, 34)) for k, level in enumerate(LEVELS)}
    assert whole.read_off(higher, true) == (False, 1)
    assert whole.read_off({}, true) == (False, 0)
    assert whole.read_off(dict(list(near.items())[:4]), true) == (False, 0)


@pytest.mark.parametrize(("missing", "confidence", "is_flagged"), [(0, 0.99, False), (1, 0.99, True), (0, 0.5, True)])
def test_a_study_is_flagged_where_the_report_says_so(benchmark, missing, confidence, is_flagged):
    answer = benchmark("whole_studies").Answer(1, "hard", False, 0, missing, confidence)
    assert answer.is_flagged is is_flagged


def test_truth_is_lifted_by_the_geometry_that_the_study_was_read_with(benchmark):
    """Where no file has a spacing, the millimetres of the phantom are others than those that the image was given."""
    import pandas as pd

    from lumbar.dicom import Stack
    from lumbar.labels import LEVELS, SAGITTAL_T1, SAGITTAL_T2
    from lumbar.study import Study

    t1, t2 = (
        Stack("11", np.zeros((2, 9, 9), np.float32), np.array([[0.0, 0, 0], [4.0, 0, 0]]), np.array([0, 0, -step]),
              np.array([0, step, 0]), [3, 4])
        for step in (1.3, 0.6)
    )  # fmt: skip
    t2.series_id = "22"
    marks = pd.DataFrame(
        [(series, 4, level, 10.0, 20.0 * k) for series in (22,) for k, level in enumerate(LEVELS)],
        columns=["series_id", "instance_number", "level", "x_px", "y_px"],
    )
    true = benchmark("whole_studies").lifted(marks, Study(1, {SAGITTAL_T1: [t1], SAGITTAL_T2: [t2]}))
    np.testing.assert_allclose(true, [(4.0, 6.0, -12.0 * k) for k in range(5)])


def test_the_traits_of_a_cohort_are_those_of_its_patients(benchmark, tmp_path):
    from lumbar_phantom.cohort import make_cohort

    make_cohort(tmp_path, 3, 5, split="test", pitfalls=("transitional",), hard_share=1.0)
    traits = benchmark("whole_studies").traits_of(tmp_path, "test")
    assert sorted(map(str, traits)) == sorted(path.name for path in (tmp_path / "test_images").iterdir())
    assert set(traits.values()) == {"hard, transitional"}


# ---- small recipes ------------------------------------------------------------------------------------------------


def test_the_words_of_a_small_recipe_leave_every_mechanism_on(benchmark):
    from lumbar_train.overrides import with_overrides
    from lumbar_train.recipes import demo, model2, strong

    small = benchmark("small_recipes")
    for recipe in (demo(), model2(), strong()):
        cut = with_overrides(recipe, small.words_of(recipe.name))
        assert list(cut.stages) == list(recipe.stages)
        for switch in ("denoise", "pseudo", "consistency"):
            assert getattr(cut, switch) == getattr(recipe, switch)
        for name, stage in cut.stages.items():
            assert bool(stage.mixing) == bool(recipe.stages[name].mixing)
            assert bool(stage.fit.metric_epochs) == bool(recipe.stages[name].fit.metric_epochs)
            assert getattr(stage.network, "conditions", ()) == getattr(recipe.stages[name].network, "conditions", ())
