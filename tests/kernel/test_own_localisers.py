"""Members of an ensemble with localisers of their own: they look where those point, each set runs once a study."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from kernel_untrained import CONFIGS, write_untrained_bundle
from lumbar.bundle.manifest import read_manifest
from lumbar.bundle.member_seconds import spared_members
from lumbar.bundle.own_localisers import LOCALISERS
from lumbar.bundle.probes import check_probes
from lumbar.bundle.weights import load_networks
from lumbar.chains.main import predict_study
from lumbar.config import CLASSIFIERS
from lumbar.errors import ManifestError
from lumbar.stages import localise as localise_module
from lumbar.stages import own_places
from lumbar.stages.aggregate import aggregate, level_confidence
from lumbar.stages.classifiers import Classifier
from lumbar.stages.classify import study_logits
from lumbar.workers.effort import Effort, FewerMembers, Spared
from stage_studies import study_of

SET = "localisers_1"
MEMBERS = {
    "a_sagittal": CONFIGS["sagittal_classifier"],
    "a_axial": CONFIGS["axial_all"],
    "b_axial": CONFIGS["axial_all"],
    "b_subarticular": CONFIGS["axial_subarticular"],
}
OWN = ["b_axial", "b_subarticular"]
PRIOR = np.full((25, 3), [0.6, 0.3, 0.1])


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    others = {name: config for name, config in CONFIGS.items() if name not in CLASSIFIERS}
    further = {f"{SET}_{stage}": CONFIGS[stage] for stage in LOCALISERS}
    aggregator = {"aggregator": replace(CONFIGS["aggregator"], models=tuple(MEMBERS))}
    more = {
        "classifiers": [Classifier.of(name, config).as_json() for name, config in MEMBERS.items()],
        "shed": ["b_axial", "b_subarticular"],
        "own_localisers": [{"name": SET, "members": OWN, "numbering": []}],
    }
    folder = tmp_path_factory.mktemp("own") / "b"
    return read_manifest(write_untrained_bundle(folder, 3, others | further | MEMBERS | aggregator, **more))


@pytest.fixture
def localised(monkeypatch):
    """The networks that places were found by, one after the other; untrained ones find little, so all point beside."""
    calls = []

    def localise(study, networks, **options):
        calls.append(networks)
        place = localise_module.localise(study, networks, **options)
        for level, (x, y, z) in list(place.levels_mm.items()):
            place.levels_mm[level] = (x, y, z + (8.0 if networks.own else 0.0))
        return place

    monkeypatch.setattr("lumbar.chains.main.localise", localise)
    monkeypatch.setattr(own_places, "localise", localise)
    return calls


def test_each_member_answers_at_the_points_of_its_own_localisers(manifest, localised):
    networks, study = load_networks(manifest.folder, manifest), study_of()
    ((members, localisers),) = networks.own
    assert members == tuple(OWN)
    assert sorted(localisers.by_stage) == sorted(LOCALISERS)
    answer = predict_study(study, networks, PRIOR)
    assert localised == [networks, localisers]  # once for each set
    places = {name: own_places.localise(study, localisers if name in OWN else networks) for name in MEMBERS}
    assert places["a_axial"].levels_mm != places["b_axial"].levels_mm
    pairs = [study_logits(study, places[name], networks.stage(name), flip=True) for name in MEMBERS]
    logits, mask = (np.stack(part) for part in zip(*((a.permute(1, 0, 2), b.T) for a, b in pairs), strict=True))
    base = places["a_axial"]
    expected = aggregate(logits, mask, PRIOR, networks.stage("aggregator"), level_confidence(base))
    np.testing.assert_allclose(answer.probs, expected, atol=1e-6)
    assert answer.localisation.levels_mm == base.levels_mm


def test_further_localisers_are_proven_by_their_probes_too(manifest):
    networks = load_networks(manifest.folder, manifest)
    check_probes(networks, manifest)
    ((_, localisers),) = networks.own
    with torch.no_grad():
        for weights in localisers.stage("axial_xy")[0].parameters():
            weights.add_(0.5)
    with pytest.raises(ManifestError, match=f"{SET}_axial_xy.*probe gave"):
        check_probes(networks, manifest)


def test_localisers_whose_members_are_all_left_out_do_not_run(manifest, localised):
    networks = load_networks(manifest.folder, manifest)
    for level, n_sets in ((FewerMembers(("b_axial",)), 2), (FewerMembers(tuple(OWN)), 1), (Effort.ONE_MODEL, 1)):
        localised.clear()
        predict_study(study_of(), networks, PRIOR, level)
        assert len(localised) == n_sets


def test_the_last_member_of_a_set_saves_its_localisers_too(manifest):
    members = {"a_sagittal": 0.25, "a_axial": 0.25, "b_axial": 0.5, "b_subarticular": 0.25}
    seconds = {"machine": "one", "rest": 0.75, "members": members, "localisers": {SET: 2.0}}
    assert spared_members(manifest.data | {"member_seconds": seconds})[0] == [
        Spared("b_axial", 0.125),
        Spared("b_subarticular", 0.5625),
    ]


def change(**values):
    return lambda data: data["own_localisers"][0].update(values)


def without_weights(data):
    data["weights"] = [entry for entry in data["weights"] if entry["stage"] != f"{SET}_axial_xy"]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda data: data.update(own_localisers={}), "own_localisers: found {}, expected"),
        (change(name="b"), r"own_localisers\[0\]\.name: found 'b', expected localisers_1"),
        (change(more=1), r"own_localisers\[0\]: found 'members', 'more', .*, expected name, members, numbering"),
        (change(members=["c"]), r"own_localisers\[0\]\.members: found 'c', no classifier, expected of a_sagittal"),
        (change(members=[]), r"own_localisers\[0\]\.members: found \[\], expected"),
        (change(numbering=[1.0]), r"own_localisers\[0\]\.numbering: found 1 numbers, expected none or 5 to 7"),
        (
            lambda data: data["own_localisers"].append({"name": "localisers_2", "members": OWN, "numbering": []}),
            r"own_localisers\[1\]\.members: found 'b_axial', in two sets, expected of",
        ),
        (without_weights, "own_localisers: weights of localisers_1_axial_xy: found none, expected axial_regression or"),
    ],
)
def test_sets_that_the_bundle_does_not_have_are_refused(manifest, tmp_path, spoil, said):
    data = copy.deepcopy(manifest.data)
    spoil(data)
    path = tmp_path / "weights_manifest.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ManifestError, match=said) as error:
        read_manifest(path)
    assert "\n" not in str(error.value)
