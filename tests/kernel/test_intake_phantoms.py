"""Two phantoms as a hospital leaves them: every series is told, by its images too, and the answers stay the same."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from hospital_tree import add_others, scramble
from lumbar.bundle.manifest import read_manifest
from lumbar.intake.by_image import STAGE, decide_by_images
from lumbar.intake.index import index_folder
from lumbar.intake.kinds import BODY
from lumbar.intake.run_table import series_table, table_of
from lumbar.io.tables import read_descriptions
from lumbar.labels import COLUMNS, DESCRIPTIONS, SEVERITY_COLUMNS
from lumbar.run import predict
from lumbar.study import read_study
from lumbar_phantom.cohort import CONTRASTS

NAMELESS = {name: {"SeriesDescription": None} for name in DESCRIPTIONS}


def described(root):
    """(study, series, description) of a competition's folder."""
    table = pd.read_csv(root / "test_series_descriptions.csv")
    return list(table.itertuples(index=False, name=None))


@pytest.fixture(scope="module")
def hospital(phantom_cohort, tmp_path_factory):
    """The tree, and the text id of each study."""
    tree = tmp_path_factory.mktemp("hospital")
    ids = scramble(phantom_cohort, tree, descriptions=described(phantom_cohort))
    add_others(tree, ids)
    return tree, ids


def test_every_series_of_a_phantom_is_told_among_what_else_a_hospital_leaves(phantom_cohort, hospital):
    tree, ids = hospital
    index = index_folder(tree)
    decisions = [one for study in index.studies for one in study.decisions]
    kinds = {(one.part.study, one.part.series): one.kind for one in decisions}
    expected = {(ids[study], f"{series}.9"): kind for study, series, kind in described(phantom_cohort)}
    assert {key: kind for key, kind in kinds.items() if kind} == expected
    assert {one.cause for one in decisions if not one.kind} == {"localiser", "Dixon", BODY}
    assert len(kinds) == len(expected) + 7 * len(ids)
    assert all("left out, there twice" in " ".join(study.problems) for study in index.studies)


def test_the_chain_sees_the_images_of_the_competitions_layout(phantom_cohort, hospital):
    tree, ids = hospital
    table, names = table_of(index_folder(tree)).frame, {}
    for study_id in table["study_id"].unique():
        names[next(key for key in ids if str(key) in str(study_id))] = study_id
    for study_id, name in names.items():
        own = read_study(tree, "test", name, table)
        before = read_study(phantom_cohort, "test", study_id, read_descriptions(phantom_cohort, "test"))
        assert {key: len(stacks) for key, stacks in own.series.items()} == {
            key: len(stacks) for key, stacks in before.series.items()
        }
        for description, stacks in before.series.items():
            for one, other in zip(own.series[description], stacks, strict=True):
                assert np.array_equal(one.volume, other.volume)
                assert np.array_equal(one.origins_mm, other.origins_mm)
                assert np.array_equal([one.row_mm, one.column_mm], [other.row_mm, other.column_mm])


@pytest.mark.slow
def test_the_demo_bundle_answers_the_same(phantom_cohort, hospital, demo_bundle):
    tree, ids = hospital
    expected, _ = predict(phantom_cohort, demo_bundle, processes=False)
    frame, record = predict(tree, demo_bundle, processes=False)
    assert [study["status"] for study in record["studies"]] == ["predicted"] * len(ids)
    values = [table.set_index("row_id")[list(SEVERITY_COLUMNS)] for table in (expected, frame)]
    for study in record["studies"]:
        key = next(key for key in ids if str(key) in str(study["study_id"]))
        before, own = ([f"{name}_{column}" for column in COLUMNS] for name in (key, study["study_id"]))
        assert np.abs(values[0].loc[before].to_numpy(float) - values[1].loc[own].to_numpy(float)).max() < 1e-6


@pytest.fixture(scope="module")
def nameless(phantom_cohort, tmp_path_factory):
    """The phantoms' series with nothing in their headers that tells a contrast, and their true contrasts by series."""
    tree = tmp_path_factory.mktemp("nameless")
    scramble(phantom_cohort, tree, NAMELESS, described(phantom_cohort))
    truth = pd.read_csv(phantom_cohort / CONTRASTS)
    truth = truth.merge(pd.read_csv(phantom_cohort / "test_series_descriptions.csv"), on=["study_id", "series_id"])
    return tree, {f"{row.series_id}.9": row for row in truth.itertuples()}


def test_the_shipped_network_tells_what_headers_do_not(nameless, demo_bundle):
    tree, truth = nameless
    assert {one.kind for study in index_folder(tree).studies for one in study.decisions} == {"undecided"}
    index = index_folder(tree)
    decide_by_images(index, read_manifest(demo_bundle))
    ordinary = [one for study in index.studies for one in study.decisions if truth[one.part.series].randomised == 0]
    assert {truth[one.part.series].contrast for one in ordinary} >= {"T1", "T2"}
    for one in ordinary:
        assert f"its images show {truth[one.part.series].contrast} (probability" in one.reason
        assert one.kind == truth[one.part.series].series_description


def test_the_demo_bundle_without_that_network_decides_by_headers_alone_and_says_so(nameless, demo_bundle):
    tree, truth = nameless
    manifest = read_manifest(demo_bundle)
    without = replace(manifest, weights=tuple(entry for entry in manifest.weights if entry.stage != STAGE))
    table = series_table(tree, without)
    kinds = {entry["kind"] for study in table.inputs.values() for entry in study}
    assert (kinds, len(table.frame)) == ({"left out (undecided)"}, 0)
    lines = [line for line in table.frame.attrs["problems"][None] if "headers alone decide" in line]
    assert lines == [
        f"headers alone decide: the bundle has no series_contrast network, so {len(truth)} series stay undecided"
    ]
