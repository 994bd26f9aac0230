"""``--set``: every field of a recipe from the command line, refused in one line where it cannot be."""

from __future__ import annotations

import dataclasses
import json
import os

import pytest
import torch

import train_tiny
from lumbar.config import BackboneConfig, HeatmapConfig, to_dict
from lumbar.errors import CohortError
from lumbar_train.__main__ import main
from lumbar_train.data.folds import FULL
from lumbar_train.outputs.kept import check_kept, write_recipe
from lumbar_train.overrides import with_overrides
from lumbar_train.pipeline.options import TrainOptions
from lumbar_train.pipeline.prepare import chosen_recipe
from lumbar_train.recipes import recipe_by_name

SMALL = [
    "*.backbone=resnet10t", "*.size=96", "recipe.pretrained=off", "sagittal_xy.size=128", "*.epochs=1", "*.batch=2",
    "*.hidden=16", "recipe.n_folds=2", "recipe.full_seeds=1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    yield
    torch.set_num_threads(1)


def test_epochs_hold_for_fits_on_folds_too_unless_these_are_set():
    before = recipe_by_name("demo")
    assert before.stages["axial_all"].for_fold(0).fit.epochs != before.stages["axial_all"].fit.epochs
    after = with_overrides(before, ["*.epochs=1"])
    assert {stage.for_fold(fold).fit.epochs for stage in after.stages.values() for fold in (0, FULL)} == {1}
    for words in (["*.fold_epochs=4", "axial_all.epochs=2"], ["axial_all.fit.epochs=2", "axial_all.fold_epochs=4"]):
        stage = with_overrides(before, words).stages["axial_all"]
        assert [stage.for_fold(fold).fit.epochs for fold in (0, FULL)] == [4, 2]


def test_epochs_of_full_fits_alone_stand_above_those_of_all(tmp_path):
    options = TrainOptions(tmp_path, tmp_path, overrides=("*.epochs=1",), full_epochs=("axial_all=6",))
    stage = chosen_recipe(options)[0].stages["axial_all"]
    assert [stage.for_fold(fold).fit.epochs for fold in (0, FULL)] == [1, 6]


@pytest.mark.parametrize(
    ("word", "stage", "part", "field", "value"),
    [
        ("sagittal_classifier.size=192", "sagittal_classifier", "network", "size", 192),
        ("axial_all.window=7", "axial_all", "network", "window", 7),
        ("axial_all.box_mm=40,80.5", "axial_all", "network", "box_mm", (40.0, 80.5)),
        ("axial_subarticular.conditions=3,4,0", "axial_subarticular", "network", "conditions", (3, 4, 0)),
        ("sagittal_classifier.own_sequences=false", "sagittal_classifier", "network", "own_sequences", False),
        ("axial_xy.batch=4", "axial_xy", "fit", "batch", 4),
        ("axial_xy.accumulate=2", "axial_xy", "fit", "accumulate", 2),
        ("sagittal_z.lr=1e-3", "sagittal_z", "fit", "lr", 1e-3),
        ("sagittal_z.fit.epochs=3", "sagittal_z", "fit", "epochs", 3),
        ("axial_all.metric_epochs=2", "axial_all", "fit", "metric_epochs", 2),
        ("axial_all.turn_deg=30", "axial_all", "augment", "turn_deg", 30.0),
        ("axial_all.mixing.cutmix=0.5", "axial_all", "mixing", "cutmix", 0.5),
        ("axial_all.mixup=0.25", "axial_all", "mixing", "mixup", 0.25),
        ("aggregator.hidden=4096", "aggregator", "network", "hidden", 4096),
    ],
)
def test_one_field_of_one_stage_changes_and_nothing_else(word, stage, part, field, value):
    before = recipe_by_name("model2")
    after = with_overrides(before, [word])
    config = getattr(after.stages[stage], part)
    assert getattr(config, field) == value
    assert type(getattr(config, field)) is type(value)
    others = {name: item for name, item in after.stages.items() if name != stage}
    assert others == {name: item for name, item in before.stages.items() if name != stage}
    own = dataclasses.replace(config, **{field: getattr(getattr(before.stages[stage], part) or type(config)(), field)})
    assert own == (getattr(before.stages[stage], part) or type(config)())


def test_every_stage_and_the_recipe_itself():
    recipe = with_overrides(recipe_by_name("strong"), [*SMALL, "recipe.denoise=off", "recipe.export=all"])
    assert {stage.fit.epochs for stage in recipe.stages.values()} == {1}
    assert recipe.stages["axial_all"].network.backbone == BackboneConfig("resnet10t")
    assert recipe.stages["sagittal_xy"].network == dataclasses.replace(
        recipe_by_name("strong").stages["sagittal_xy"].network, backbone="resnet10t", size=128
    )
    assert (recipe.n_folds, recipe.full_seeds, recipe.pretrained, recipe.denoise, recipe.export) == (
        2, 1, False, None, "all",
    )  # fmt: skip
    assert with_overrides(recipe, ["recipe.denoise.below=0.1"]).denoise.below == 0.1


def test_fields_of_a_backbone():
    words = [
        "axial_all.backbone=resnet10t", "axial_all.backbone.channels=8,8,16,16", "axial_all.backbone.stem_width=16",
        "axial_all.backbone.norm=group",
    ]  # fmt: skip
    recipe = with_overrides(recipe_by_name("model2"), words)
    wanted = BackboneConfig("resnet10t", channels=(8, 8, 16, 16), stem_width=16, norm="group")
    assert recipe.stages["axial_all"].network.backbone == wanted


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("sagital_classifier.size=64", "found stage 'sagital_classifier', expected 'sagittal_classifier'"),
        ("axial_all.epoch=3", "has no field 'epoch', expected 'epochs'"),
        ("axial_all.backbone.chanels=8", "backbone has no field 'chanels', expected 'channels'"),
        ("axial_all.epochs", "expected STAGE.FIELD=VALUE"),
        ("axial_all.epochs=", "expected STAGE.FIELD=VALUE"),
        ("axial_all.epochs=0", "found 0, expected more than 0"),
        ("axial_all.epochs=2.5", "found '2.5', expected a whole number"),
        ("axial_all.lr=nan", "found nan, expected more than 0"),
        ("axial_all.dropout=1.5", "found 1.5, expected 0 to 1"),
        ("axial_all.box_mm=40", "found 1 numbers, expected 2"),
        ("axial_all.conditions=3,7", "expected numbers of conditions"),
        ("axial_all.share_sides=maybe", "found 'maybe', expected true or false"),
        ("axial_all.backbone=convnext_tinny", "knows no 'convnext_tinny', expected convnext_tiny"),
        ("axial_all.backbone.norm=layer", "expected batch or group"),
        ("sagittal_xy.cutmix=0.3", "has no field 'cutmix'"),
        ("sagittal_xy.points=9", "points cannot be changed"),
        ("*.colour=3", "* has no field 'colour'"),
        ("recipe.n_fold=2", "a recipe has no field 'n_fold', expected 'n_folds'"),
        ("recipe.n_folds=1", "expected 2 folds or more"),
        ("recipe.name=mine", "a recipe has no field 'name'"),
        ("axial_all.backbone=maxvit_rmlp_pico_rw_256", "the network of axial_all cannot be built"),
    ],
)
def test_what_cannot_be_is_one_line_and_nothing_is_written(word, message, tmp_path, capsys):
    if "points" in word:
        with pytest.raises(CohortError, match=message):
            with_overrides(recipe_by_name("strong"), [word])
        return
    train_tiny.empty_competition(tmp_path)
    more = ["--set", "axial_all.size=100"] if "maxvit" in word else []
    command = ["train", "--data", str(tmp_path), "--recipe", "model2", "--out", str(tmp_path / "run"), *more]
    assert main([*command, "--set", word]) == 1
    line = capsys.readouterr().err.strip()
    assert message in line
    assert "\n" not in line
    assert not (tmp_path / "run").exists()


# A run folder's recipe


def test_kept_fits_are_read_as_they_were_trained(tmp_path):
    before = recipe_by_name("model2")
    write_recipe(tmp_path, before, 0, ["axial_all.size=96"])
    assert json.loads((tmp_path / "recipe.json").read_text())["set"] == ["axial_all.size=96"]
    (tmp_path / "axial_all").mkdir()
    (tmp_path / "axial_all/fold0.safetensors").touch()
    check_kept(tmp_path, before, [])
    other = with_overrides(before, ["sagittal_classifier.size=128", "axial_xy.epochs=3"])
    check_kept(tmp_path, other, [])  # nothing is kept of what changes
    changed = with_overrides(before, ["axial_all.hidden=64"])
    with pytest.raises(
        CohortError, match=r"recipe\.json: axial_all was trained with hidden 768, found 64; give the same"
    ):
        check_kept(tmp_path, changed, [])
    check_kept(tmp_path, changed, ["axial_all"])
    (tmp_path / "sagittal_xy").mkdir()
    (tmp_path / "sagittal_xy/full.safetensors").touch()
    with pytest.raises(CohortError, match="sagittal_xy was trained as another kind of network"):
        check_kept(tmp_path, recipe_by_name("strong"), ["axial_all"])


@pytest.mark.parametrize(
    ("recipe", "word"),
    [
        ("demo", "sagittal_xy.segments=5"),
        ("demo", "axial_all.share_sides=false"),
        ("model2", "axial_all.box_mm=30.0,80.0"),
        ("model2", "axial_all.backbone=convnext_atto"),
        ("strong", "sagittal_xy.backbone=none"),
    ],
)
def test_a_network_that_the_recipe_has_changed_is_refused_with_the_word_that_keeps_it(tmp_path, recipe, word):
    stage = word.partition(".")[0]
    write_recipe(tmp_path, with_overrides(recipe_by_name(recipe), [word]), 0)
    (tmp_path / stage).mkdir()
    (tmp_path / stage / "full.safetensors").touch()
    with pytest.raises(CohortError) as refusal:
        check_kept(tmp_path, recipe_by_name(recipe), [])
    assert f"(here --set {word}), train that stage anew in full (--stages {stage} --overwrite)" in str(refusal.value)
    check_kept(tmp_path, with_overrides(recipe_by_name(recipe), [word]), [])


def test_a_run_of_before_has_what_its_recipe_did_not_name(tmp_path):
    """Fields newer than the run have the values that it was trained with, whatever the recipe says now."""
    now = recipe_by_name("model2")
    write_recipe(tmp_path, now, 0)
    content = json.loads((tmp_path / "recipe.json").read_text())
    del content["stages"]["sagittal_classifier"]["network"]["own_sequences"]
    (tmp_path / "recipe.json").write_text(json.dumps(content))
    (tmp_path / "sagittal_classifier").mkdir()
    (tmp_path / "sagittal_classifier/full.safetensors").touch()
    with pytest.raises(CohortError, match="was trained with own_sequences False, found True"):
        check_kept(tmp_path, now, [])
    check_kept(tmp_path, with_overrides(now, ["sagittal_classifier.own_sequences=false"]), [])


@pytest.mark.slow
def test_the_same_localisers_with_other_classifiers_are_exportable(tmp_path, capsys):
    data = train_tiny.write_cohort(tmp_path / "cohort")
    run = tmp_path / "run"
    command = ["train", "--data", str(data), "--recipe", "tiny", "--out", str(run), "--workers", "0", "--device", "cpu"]
    assert main([*command, "--stages", "sagittal_xy,sagittal_z,axial_xy,localise"]) == 0
    localisers = (run / "sagittal_xy/full.safetensors").read_bytes()
    words = ["--set", "axial_all.backbone=convnext_atto", "--set", "axial_all.epochs=1", "--set", "axial_all.size=32"]
    last = ["--stages", "sagittal_classifier,axial_subarticular,axial_all,aggregator"]
    assert main([*command, *words, *last, "--resume"]) == 0
    manifest = json.loads((run / "export/weights_manifest.json").read_text())
    (entry,) = [e for e in manifest["weights"] if e["stage"] == "axial_all"]
    assert entry["config"]["backbone"]["name"] == "convnext_atto"
    assert manifest["training"]["set"] == [word for word in words if word != "--set"]
    assert (run / "sagittal_xy/full.safetensors").read_bytes() == localisers
    capsys.readouterr()
    assert main([*command, "--stages", "aggregator", "--overwrite"]) == 1  # without the words the classifier is another
    assert "axial_all was trained with backbone 'convnext_atto', found 'resnet10t'" in capsys.readouterr().err


def test_configurations_keep_their_kinds():
    recipe = with_overrides(recipe_by_name("strong"), ["axial_xy.mm_per_px=0.8"])
    network = recipe.stages["axial_xy"].network
    assert isinstance(network, HeatmapConfig)
    assert to_dict(network)["mm_per_px"] == 0.8
