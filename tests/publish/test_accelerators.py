from __future__ import annotations

import json
from pathlib import Path

import pytest

from lumbar.competitions.lumbar_spine import COMPETITION as LUMBAR_SPINE
from lumbar.errors import ManifestError
from lumbar_publish import cli
from lumbar_publish.cli import main
from lumbar_publish.names import DatasetId, Layout
from lumbar_publish.sealing.accelerators import ACCELERATORS, accelerator, machine_from_metadata
from lumbar_publish.sealing.metadata import configured_machine, kernel_metadata

DATASET = DatasetId("me", "lumbar-kit")


@pytest.mark.parametrize("name", ACCELERATORS)
def test_metadata_asks_for_the_machine_and_tells_it_again(name: str) -> None:
    data = kernel_metadata(DATASET, name)
    kind = ACCELERATORS[name].kind
    assert (data["enable_gpu"], data["enable_tpu"]) == (kind == "gpu", kind == "tpu")
    assert data["machine_shape"] == ("" if name == "none" else name)
    assert machine_from_metadata(data).name == name
    assert machine_from_metadata(data).hours(LUMBAR_SPINE) <= LUMBAR_SPINE.hours


def test_a_name_is_found_in_any_case() -> None:
    assert accelerator("nvidiateslat4").name == "NvidiaTeslaT4"


def test_a_machine_without_a_name_is_the_default_of_its_kind() -> None:
    assert machine_from_metadata({"enable_gpu": True}).name == "NvidiaTeslaT4"
    assert machine_from_metadata({"enable_tpu": True}).name == "TpuV5E8"
    assert machine_from_metadata({}).name == "none"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("V100", "accelerator 'V100': expected one of none, NvidiaTeslaT4, "),
        (
            "NvidiaTeslaP100",
            r"accelerator 'NvidiaTeslaP100' \(retired: Kaggle would run it on NvidiaTeslaT4\): expected",
        ),
        ("tpuv232", r"accelerator 'tpuv232' \(retired: Kaggle would run it on none\): expected"),
        ("NvidiaTeslaT4Highmem", "expected one of none"),
        ("", "expected one of none"),
    ],
)
def test_unknown_and_retired_machines_are_refused_with_the_list(name: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        accelerator(name)


def test_unknown_image_is_refused() -> None:
    with pytest.raises(ManifestError, match="image 'newest': expected one of latest, original"):
        kernel_metadata(DATASET, image="newest")


@pytest.fixture
def build(layout: Layout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """``build_dataset.py`` with arguments: exit code, kernel metadata, output, errors."""
    monkeypatch.setattr(cli, "run_chain", lambda *_: None)

    def run(*arguments: str):
        code = main(layout, lambda folder: None, list(arguments))
        captured = capsys.readouterr()
        path: Path = layout.kernel_metadata
        return code, json.loads(path.read_text()) if path.is_file() else None, captured.out, captured.err

    return run


def test_option_is_noted_in_the_notebooks_metadata(build) -> None:
    code, data, out, err = build("--accelerator", "none", "--image", "original")
    assert code == 0, err
    assert (data["enable_gpu"], data["machine_shape"]) == (False, "")
    assert data["docker_image_pinning_type"] == "original"
    assert "notebook: none (CPU only, no quota), image original, at most 9 hours" in out
    _, again, _, _ = build()  # what was asked for stays, through a new seal as well
    assert again == data
    _, data, out, _ = build("--accelerator", "nvidiateslat4", "--image", "latest")
    assert (data["enable_gpu"], data["machine_shape"]) == (True, "NvidiaTeslaT4")
    assert data["docker_image_pinning_type"] == "latest"
    assert "notebook: NvidiaTeslaT4 (two T4, the default GPU), image latest, at most 9 hours" in out


@pytest.mark.parametrize("text", ["", "[]", '{"enable_gpu": true, "machine_shape": "NvidiaTeslaP100"}'])
def test_metadata_that_says_nothing_valid_gives_the_default(tmp_path: Path, text: str) -> None:
    path = tmp_path / "kernel-metadata.json"
    assert configured_machine(path) == ("NvidiaTeslaT4", "latest")
    path.write_text(text)
    assert configured_machine(path) == ("NvidiaTeslaT4", "latest")


def test_unknown_machine_is_refused_before_anything_is_sealed(build, layout: Layout) -> None:
    code, data, _, err = build("--accelerator", "P100")
    assert code == 1
    assert err.startswith("error: accelerator 'P100': expected one of none, NvidiaTeslaT4")
    assert len(err.splitlines()) == 1
    assert data is None
    assert not layout.sealed.exists()


def test_no_run_needs_something_to_push(build) -> None:
    code, _, _, err = build("--no-run")
    assert code == 1
    assert "add --publish kernel" in err
