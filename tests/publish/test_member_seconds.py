"""Sealing an ensemble times its members once, and says in the manifest what each costs on the notebook's machine."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import lumbar
from kernel_untrained import CONFIGS, write_untrained_bundle
from lumbar.bundle.manifest import read_manifest
from lumbar.bundle.member_seconds import FILE, KEY
from lumbar.config import CLASSIFIERS, FusionConfig
from lumbar.errors import ManifestError
from lumbar.stages.classifiers import Classifier, feature_width
from lumbar_publish.names import Layout
from lumbar_publish.sealing import measure_members
from lumbar_publish.sealing.accelerators import accelerator
from lumbar_publish.sealing.member_seconds import keep_seconds, kept_seconds, measured, projected
from lumbar_publish.sealing.seal import seal
from stage_studies import study_of

MEMBERS = {
    "a_sagittal": CONFIGS["sagittal_classifier"],
    "a_axial": CONFIGS["axial_all"],
    "b_wide": replace(CONFIGS["axial_all"], box_scale=3.0, size=96, window=5),
}
T4 = accelerator("NvidiaTeslaT4")
SECONDS = {
    "machine": str(T4),
    "rest": 0.5,
    "members": {"a_sagittal": 0.02, "a_axial": 0.01, "b_wide": 0.1},
    "localisers": {},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of an ensemble."""
    folder = tmp_path_factory.mktemp("run")
    others = {name: config for name, config in CONFIGS.items() if name not in CLASSIFIERS}
    aggregator = {"aggregator": replace(CONFIGS["aggregator"], models=tuple(MEMBERS))}
    listed = [Classifier.of(name, config).as_json() for name, config in MEMBERS.items()]
    write_untrained_bundle(folder / "export", 1, others | MEMBERS | aggregator, classifiers=listed)
    (folder / "recipe.json").write_text('{"name": "demo"}')
    return folder


def test_sealing_times_the_members_once_and_the_same_again_keeps_the_bytes(layout: Layout, run: Path) -> None:
    calls: list[Path] = []

    def measure(folder: Path) -> dict:
        calls.append(folder)
        assert (folder / "code/lumbar/__main__.py").is_file()  # what is timed is the staged bundle
        return SECONDS

    first = seal(layout, run=run, measure=measure)
    data = read_manifest(first.folder).data
    assert data[KEY] == SECONDS == read_manifest(layout.lock).data[KEY]
    assert len({path.stat().st_mtime_ns for path in first.folder.rglob("*")}) == 1
    assert seal(layout, run=run, measure=measure).manifest_hash == first.manifest_hash
    assert len(calls) == 1


def test_the_usual_three_are_not_timed(layout: Layout, export: Path) -> None:
    sealed = seal(layout, run=export, measure=lambda folder: pytest.fail("timed"))
    assert KEY not in read_manifest(sealed.folder).data


def test_a_run_keeps_what_was_measured_for_its_weights_and_the_machine(run: Path, tmp_path: Path) -> None:
    data = dict(read_manifest(run / "export").data)
    assert kept_seconds(tmp_path, data, T4) is None
    keep_seconds(tmp_path, data)
    assert not (tmp_path / FILE).exists()
    keep_seconds(tmp_path, data | {KEY: SECONDS})
    assert kept_seconds(tmp_path, data, T4) == SECONDS
    assert kept_seconds(tmp_path, data, accelerator("none")) is None
    assert kept_seconds(tmp_path, data | {"weights": data["weights"][1:]}, T4) is None
    (tmp_path / FILE).write_text(json.dumps({"weights": 3}))
    with pytest.raises(ManifestError, match="found no seconds of members, expected what sealing wrote; remove it"):
        kept_seconds(tmp_path, data, T4)


def test_each_member_is_timed_and_counted_on_the_study(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_members, "_first_study", lambda manifest, root: study_of())
    told = measure_members.measure(run / "export", Path())
    assert list(told["members"]) == list(MEMBERS)
    assert all(one["seconds"] > 0 for one in (*told["members"].values(), told["localise"]))
    flops = {name: one["flops"] for name, one in told["members"].items()}
    assert 8 < flops["b_wide"] / flops["a_axial"] < 20  # nine times the pixels, five slices for three
    assert told["localise"]["flops"] > 0
    assert told["cut_seconds"] > 0


def test_a_fusion_beside_the_members_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = FusionConfig(CLASSIFIERS, tuple(feature_width(CONFIGS[name]) for name in CLASSIFIERS), hidden=4, dropout=0.0)
    joined = replace(CONFIGS["aggregator"], models=(*CLASSIFIERS, "fusion"))
    configs = {"fusion": head} | CONFIGS | {"aggregator": joined}
    listed = [Classifier.of(name, CONFIGS[name]).as_json() for name in CLASSIFIERS]
    fusion = {"members": list(CLASSIFIERS)}
    bundle = write_untrained_bundle(tmp_path / "b", 1, configs, classifiers=listed, fusion=fusion)
    monkeypatch.setattr(measure_members, "_first_study", lambda manifest, root: study_of())
    assert list(measure_members.measure(bundle, Path())["members"]) == list(CLASSIFIERS)


@pytest.mark.slow
def test_the_sealed_code_alone_times_its_members(run: Path, phantom_cohort: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run / "export", tmp_path / "sealed")
    (folder / "code").mkdir()
    (folder / "code/lumbar").symlink_to(Path(lumbar.__file__).parent)
    told = measured(folder, phantom_cohort, T4)
    assert list(told["members"]) == list(MEMBERS)
    assert told["machine"] == str(T4)
    assert told["rest"] > 0


def test_seconds_are_carried_over_by_counted_operations() -> None:
    told = {
        "members": {"a": {"seconds": 1.0, "flops": 2e10}, "b": {"seconds": 3.0, "flops": 2e10}},
        "localise": {"seconds": 1.5, "flops": 1e10},  # of these one second in the networks
        "localisers": {"localisers_1": {"seconds": 0.5, "flops": 0}},
        "cut_seconds": 0.25,
    }
    here = projected(told, accelerator("none"))
    assert (here["rest"], here["members"]) == (1.75, {"a": 1.0, "b": 3.0})
    there = projected(told, T4)
    factor = 1e10 / (12.6e12 * 320 / 936)
    assert there["members"]["b"] == pytest.approx(3 * factor, abs=1e-6)
    assert there["members"]["b"] / there["members"]["a"] == pytest.approx(3, rel=1e-3)
    assert there["localisers"] == {"localisers_1": 0.5}
    assert there["rest"] == pytest.approx(0.75 + factor, abs=1e-6)
