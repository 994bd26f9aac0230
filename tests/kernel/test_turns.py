"""An ensemble that does not fit into the memory: some of its fits take turns, and the answers stay bit for bit."""

from dataclasses import replace

import numpy as np
import pytest

from kernel_untrained import CONFIGS, write_untrained_bundle
from lumbar.bundle import turns
from lumbar.bundle.manifest import read_manifest
from lumbar.bundle.turns import loading_plan
from lumbar.bundle.weights import load_networks
from lumbar.chains.main import load, predict_study
from lumbar.config import CLASSIFIERS
from lumbar.models.inference import device_of
from lumbar.stages.classifiers import Classifier
from lumbar.workers.machine import float_bytes
from stage_studies import study_of

MEMBERS = {
    "a_sagittal": CONFIGS["sagittal_classifier"],
    "a_axial": CONFIGS["axial_all"],
    "b_axial": replace(CONFIGS["axial_all"], conditions=(3, 4)),
    "b_wide": replace(CONFIGS["axial_all"], box_scale=3.0, size=40, window=5),
}
PRIOR = np.full((25, 3), [0.6, 0.3, 0.1])


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    others = {name: config for name, config in CONFIGS.items() if name not in CLASSIFIERS}
    aggregator = {"aggregator": replace(CONFIGS["aggregator"], models=tuple(MEMBERS))}
    listed = [Classifier.of(name, config).as_json() for name, config in MEMBERS.items()]
    more = {"classifiers": listed, "shed": ["a_axial", "b_axial"]}
    return read_manifest(
        write_untrained_bundle(tmp_path_factory.mktemp("turns") / "b", 1, others | MEMBERS | aggregator, **more)
    )


def need(manifest, names):
    return sum(float_bytes(entry) for entry in manifest.weights if entry.stage in names)


def others(manifest):
    return need(manifest, {entry.stage for entry in manifest.weights} - set(MEMBERS))


def stages(entries):
    return [entry.stage for entry in entries]


def test_the_plan_loads_once_what_fits_and_lets_first_go_in_turn_what_is_left_out_first(manifest):
    whole = loading_plan(manifest, "cpu", free=others(manifest) + need(manifest, MEMBERS))
    assert stages(whole.loaded) == list(MEMBERS)
    assert whole.in_turn == ()
    assert whole.words.startswith("4 classifier fits loaded once (")
    less = loading_plan(manifest, "cpu", free=others(manifest) + need(manifest, MEMBERS) - 1)
    assert stages(less.loaded) == ["a_sagittal", "b_wide"]
    assert stages(less.in_turn) == ["b_axial", "a_axial"]
    assert less.words.startswith("2 of 4 classifier fits loaded once, 2 in turn for each study, ")
    none = loading_plan(manifest, "cpu", free=0)
    assert len(none.in_turn) == 4


def test_in_turn_the_answers_are_the_same_bit_for_bit_and_one_at_a_time_is_in_memory(manifest, monkeypatch, caplog):
    study = study_of()
    expected = predict_study(study, load_networks(manifest.folder, manifest), PRIOR).probs
    monkeypatch.setattr(turns, "memory_for_networks", lambda manifest, device: 0)
    networks = load(manifest, "cpu")  # its probes pass too
    assert "cpu: 0 of 4 classifier fits loaded once, 4 in turn" in caplog.text
    for _ in range(2):
        np.testing.assert_array_equal(predict_study(study, networks, PRIOR).probs, expected)
        places = [device_of(networks.stage(name)[0]).type for name in MEMBERS]
        assert sorted(places) == ["cpu", "meta", "meta", "meta"]
    assert device_of(networks.stage("sagittal_xy")[0]).type == "cpu"


def test_the_usual_bundle_on_a_usual_machine_takes_no_turns(tmp_path, caplog):
    manifest = read_manifest(write_untrained_bundle(tmp_path / "b"))
    assert loading_plan(manifest, "cpu").in_turn == ()
    networks = load_networks(manifest.folder, manifest)
    assert {device_of(network).type for fits in networks.by_stage.values() for network in fits} == {"cpu"}
    assert "turn" not in caplog.text
