from __future__ import annotations

import json
from pathlib import Path

import pytest

from lumbar_publish.kaggle.image import image_line
from publish.conftest import Publish
from publish.kaggle_server import KaggleServer, run_output

NOW = {"lumbar": "0.1.0", "python": "3.12.12", "torch": "2.10.0+cu128", "numpy": "2.0.2", "opencv-python": "4.13.0.92"}
HERE = {
    "lumbar": "0.2.0",
    "python": "3.12.1",
    "torch": "2.10.0",
    "numpy": "2.0.2",
    "opencv-python-headless": "4.13.0.92",
}
NEXT = HERE | {"python": "3.13.0", "torch": "2.11.0", "numpy": "2.1.3"}


def rehearse(dist: Path, name: str, versions: dict, manifest_hash: str = "a") -> None:
    path = dist / name / "kaggle" / "working" / "record.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"manifest_hash": manifest_hash, "versions": versions}))


@pytest.fixture
def dist(tmp_path: Path) -> Path:
    """Rehearsals with the present image's versions, with the next one's, and of another bundle."""
    rehearse(tmp_path / "dist", "parity", HERE)
    rehearse(tmp_path / "dist", "parity-next", NEXT)
    rehearse(tmp_path / "dist", "dry-run", NOW, manifest_hash="b")
    return tmp_path / "dist"


def test_builds_and_patches_of_the_same_versions_do_not_differ(dist: Path) -> None:
    record = {"manifest_hash": "a", "versions": NOW}
    assert image_line(record, dist) == "image: the versions of the rehearsal in dist/parity"


def test_a_difference_from_the_nearest_rehearsal_is_named(dist: Path) -> None:
    versions = NEXT | {"torch": "2.12.0", "timm": "1.0.28"}
    line = image_line({"manifest_hash": "a", "versions": versions}, dist)
    assert line == (
        "image: differs from the rehearsal in dist/parity-next: "
        "timm 1.0.28 (rehearsed without), torch 2.12.0 (rehearsed 2.11.0)"
    )


def test_rehearsals_of_another_bundle_and_damaged_records_do_not_count(dist: Path) -> None:
    (dist / "parity" / "kaggle" / "working" / "record.json").write_text("{")
    line = image_line({"manifest_hash": "c", "versions": {"numpy": "2.0.2"}}, dist)
    assert line == "image: numpy 2.0.2; this bundle was not rehearsed here (`make parity` does that)"
    assert image_line({}, dist) == "image: the run's record names no versions"


def test_the_versions_of_a_run_are_said(kaggle: KaggleServer, published: str, publish: Publish) -> None:
    def output(request: dict) -> dict[str, bytes]:
        record = json.dumps({"manifest_hash": published, "versions": NOW}).encode()
        return run_output(request) | {"record.json": record}

    kaggle.output = output
    out = publish("kernel")[1]
    assert "image: python 3.12, torch 2.10.0, numpy 2.0.2, opencv 4.13.0.92; this bundle was not rehearsed here" in out
