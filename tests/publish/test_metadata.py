from __future__ import annotations

import json
from pathlib import Path

import pytest
from slugify import slugify

from lumbar_publish.names import COMPETITION, DatasetId, Layout
from lumbar_publish.sealing.metadata import dataset_metadata, kernel_metadata, write_json
from lumbar_publish.sealing.seal import read_json, seal

REPOSITORY = Layout(Path(__file__).resolve().parents[2])
IDS = [DatasetId("me", "lumbar-kit"), DatasetId("Some-One1", "a1-b2-c3"), DatasetId("me", "x" * 39)]


@pytest.mark.parametrize("dataset", IDS, ids=str)
def test_dataset_metadata_keeps_kaggles_rules(dataset: DatasetId) -> None:
    data = dataset_metadata(dataset)
    assert data["id"] == str(dataset)
    assert 6 <= len(data["title"]) <= 50
    assert len(data["licenses"]) == 1


@pytest.mark.parametrize("dataset", IDS, ids=str)
def test_kernel_title_leads_back_to_its_id(dataset: DatasetId) -> None:
    data = kernel_metadata(dataset)
    assert data["id"] == f"{dataset.owner}/{slugify(data['title'])}"
    assert 5 <= len(data["title"]) <= 50


def test_kernel_metadata_is_private_offline_on_t4_with_both_sources(tmp_path: Path) -> None:
    write_json(tmp_path / "kernel-metadata.json", kernel_metadata(IDS[0]))
    data = json.loads((tmp_path / "kernel-metadata.json").read_text())
    flags = {key: data[key] for key in ("is_private", "enable_gpu", "enable_internet", "enable_tpu")}
    assert flags == {"is_private": True, "enable_gpu": True, "enable_internet": False, "enable_tpu": False}
    assert all(type(value) is bool for value in flags.values())
    assert data["machine_shape"] == "NvidiaTeslaT4"
    assert data["dataset_sources"] == ["me/lumbar-kit"]
    assert data["competition_sources"] == [COMPETITION]
    assert (data["language"], data["kernel_type"]) == ("python", "notebook")


def test_code_file_is_the_notebook_from_the_kernels_folder(layout: Layout) -> None:
    seal(layout)
    data = json.loads(layout.kernel_metadata.read_text())
    assert (layout.kernel_metadata.parent / data["code_file"]).resolve() == layout.notebook.resolve()


def test_committed_metadata_is_that_of_the_lock_file() -> None:
    dataset = DatasetId.parse(read_json(REPOSITORY.lock)["dataset"]["id"])
    assert read_json(REPOSITORY.kernel_metadata) == kernel_metadata(dataset)
