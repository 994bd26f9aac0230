"""What ships: which fits, in which order, with which prior, and how it is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from kernel_untrained import CONFIGS
from lumbar.bundle.manifest import verify
from lumbar.bundle.probes import check_probes
from lumbar.bundle.weights import load_networks
from lumbar.config import STAGES, to_dict
from lumbar.labels import COLUMNS
from lumbar.models import build, name_of
from lumbar.stages.point_probability import KINDS
from lumbar_train.data.folds import FULL
from lumbar_train.data.tables import Cohort
from lumbar_train.errors import TrainingError
from lumbar_train.export import export
from lumbar_train.outputs.run_folder import RunFolder
from lumbar_train.recipes import Fit, Recipe, StageRecipe

FIT = Fit(1, 1e-3, 1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of untrained networks: two folds and two seeds on all data."""
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    torch.manual_seed(0)
    for stage, config in CONFIGS.items():
        for fold in (0, 1, FULL, -2):
            network = build(name_of(config), to_dict(config))
            folder.save_network(network, stage, fold, [1])
    labels = np.random.default_rng(0).integers(-1, 3, (12, 25)).astype(np.int8)
    cohort = Cohort(folder.path, "train", np.arange(12), labels, pd.DataFrame(), pd.DataFrame())
    recipe = Recipe("untrained", {name: StageRecipe(config, FIT) for name, config in CONFIGS.items()})
    return SimpleNamespace(
        folder=folder, out=folder.path, cohort=cohort, recipe=recipe, use_folds=[0, 1, FULL, -2], changes=()
    )


def with_export(run, which: str):
    return SimpleNamespace(**(vars(run) | {"recipe": replace(run.recipe, export=which)}))


def test_the_export_is_a_bundle_that_the_kernel_loads(run):
    folder = export(run)
    manifest = verify(folder)
    networks = load_networks(folder, manifest)
    check_probes(networks, manifest)
    assert [len(networks.stage(stage)) for stage in STAGES] == [2] * len(STAGES)
    assert manifest.code_sha256 == ""  # no code lies beside it before it is sealed


def test_half_precision_is_what_the_probe_was_taken_of(run):
    folder = export(run)
    entry = next(e for e in verify(folder).data["weights"] if e["stage"] == "axial_xy")
    stored = run.folder.weights("axial_xy", FULL).stat().st_size
    assert entry["bytes"] < 0.7 * stored


@pytest.mark.parametrize(("which", "folds"), [("full", [-1, -2]), ("folds", [0, 1]), ("all", [-1, -2, 0, 1])])
def test_fits_on_all_data_come_first(run, which, folds):
    """When time is short the kernel runs the first alone."""
    data = json.loads((export(with_export(run, which)) / "weights_manifest.json").read_text())
    assert [e["fold"] for e in data["weights"] if e["stage"] == "aggregator"] == folds
    assert list(dict.fromkeys(e["stage"] for e in data["weights"])) == list(STAGES)


def test_each_column_has_a_prior_that_sums_to_one(run):
    data = json.loads((export(run) / "weights_manifest.json").read_text())
    assert set(data["prior"]) == set(COLUMNS)
    for row in data["prior"].values():
        assert sum(row) == pytest.approx(1, abs=1e-12)
        assert min(row) > 0


def test_what_changed_the_recipe_is_in_the_manifest(run):
    run.folder.add_seconds("axial_xy", 5.0, torch.device("cpu"))
    changed = SimpleNamespace(**(vars(run) | {"changes": ("*.epochs=3",)}))
    training = json.loads((export(changed) / "weights_manifest.json").read_text())["training"]
    assert training["set"] == ["*.epochs=3"]
    assert training["axial_xy"] == 5.0


def test_what_the_fits_started_from_is_in_the_manifest_without_its_folder(run):
    (run.out / "recipe.json").write_text(json.dumps({"init": {"run": "/home/somebody/runs/before", "digest": "0a"}}))
    training = json.loads((export(run) / "weights_manifest.json").read_text())["training"]
    assert training["init"] == {"run": "before", "digest": "0a"}


def test_what_was_measured_of_the_localisers_stays_as_long_as_they_do(run, capsys):
    """Else a run that ships more, or has a fusion, would forget how sure its levels and points are."""
    path = export(run) / "weights_manifest.json"
    numbers = {"numbering": [1.0, 2.0, 3.0, 4.0, 5.0], "point_probability": {kind: [0.1, 0.2] for kind in KINDS}}
    path.write_text(json.dumps(json.loads(path.read_text()) | numbers))
    data = json.loads((export(run) / "weights_manifest.json").read_text())
    assert {name: data[name] for name in numbers} == numbers
    capsys.readouterr()
    others = json.loads((export(with_export(run, "all")) / "weights_manifest.json").read_text())
    assert not numbers.keys() & others.keys()
    assert "numbering, point_probability are left out: they are of other localisers" in capsys.readouterr().out


def test_a_stage_without_the_fit_that_ships_is_named_and_the_former_export_stays(run, tmp_path):
    before = {path.name: path.stat().st_mtime_ns for path in export(run).rglob("*.*")}
    path = run.folder.weights("axial_all", -2)
    path.rename(tmp_path / "aside")
    try:
        with pytest.raises(TrainingError, match=r"axial_all/full2\.safetensors: not found, expected the fit of stage"):
            export(run)
    finally:
        (tmp_path / "aside").rename(path)
    assert {path.name: path.stat().st_mtime_ns for path in run.folder.export.rglob("*.*")} == before


def test_weights_of_another_network_are_refused(run):
    other = replace(run.recipe.stages["axial_xy"], network=replace(CONFIGS["axial_xy"], widths=(8, 16, 8)))
    wrong = SimpleNamespace(
        **(vars(run) | {"recipe": replace(run.recipe, stages=run.recipe.stages | {"axial_xy": other})})
    )
    with pytest.raises(TrainingError, match=r"axial_xy/full\.safetensors: not weights of this"):
        export(wrong)
