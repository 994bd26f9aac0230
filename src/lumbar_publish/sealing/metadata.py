"""The metadata of dataset and notebook that the plain ``kaggle`` client reads; a model's are in ``model_card``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lumbar.errors import ManifestError
from lumbar_publish.files import write_text
from lumbar_publish.names import COMPETITION, NOTEBOOK, DatasetId
from lumbar_publish.sealing.accelerators import DEFAULT, IMAGES, accelerator, machine_from_metadata, machine_metadata


def dataset_metadata(dataset: DatasetId) -> dict[str, Any]:
    """``dataset-metadata.json``: id, title, and exactly one licence.

    ``other``: weights trained on the competition's images fall under the competition's own rules.
    """
    return {"id": str(dataset), "licenses": [{"name": "other"}], "title": dataset.title}


def kernel_metadata(
    dataset: DatasetId,
    machine: str = DEFAULT,
    image: str = IMAGES[0],
    model_version: int | None = None,
    competition: str = COMPETITION,
) -> dict[str, Any]:
    """``kernel-metadata.json``: private, internet off, dataset and competition attached, two T4s unless said otherwise.

    Booleans are booleans (the client crashes on integers), and ``enable_internet`` is written because the client's
    own default is true.

    Args:
        dataset: what is attached.
        machine: name of the accelerator, ``none`` for the CPU.
        image: ``latest``, the image as it is when the notebook runs, the one that the parity pins follow; or
            ``original``, the image of the notebook's first version.
        model_version: the model is attached in this version, instead of the dataset.
        competition: its name on Kaggle, attached too.

    Raises:
        ManifestError: an unknown accelerator or image.
    """
    if image not in IMAGES:
        raise ManifestError(f"image {image!r}: expected one of {', '.join(IMAGES)}")
    return (
        {
            "code_file": f"../{NOTEBOOK}",
            "competition_sources": [competition],
            "enable_internet": False,
            "id": dataset.kernel,
            "is_private": True,
            "kernel_sources": [],
            "kernel_type": "notebook",
            "language": "python",
            "title": dataset.kernel_title,
        }
        | machine_metadata(accelerator(machine), image)
        | bundle_sources(dataset, model_version)
    )


def bundle_sources(dataset: DatasetId, model_version: int | None = None) -> dict[str, list[str]]:
    """The fields of ``kernel-metadata.json`` that attach the bundle.

    Args:
        dataset: the bundle's name.
        model_version: of the model; None attaches the dataset, whose newest version Kaggle takes.
    """
    if model_version is None:
        return {"dataset_sources": [str(dataset)], "model_sources": []}
    return {"dataset_sources": [], "model_sources": [f"{dataset.variation}/{model_version}"]}


def configured_model_version(path: Path) -> int | None:
    """Version of the model that a ``kernel-metadata.json`` attaches; None where it attaches the dataset, or nothing."""
    try:
        sources = json.loads(path.read_text(encoding="utf-8"))["model_sources"]
        return int(str(sources[0]).rpartition("/")[2])
    except (OSError, ValueError, TypeError, LookupError):
        return None


def configured_machine(path: Path) -> tuple[str, str]:
    """Accelerator and image that a ``kernel-metadata.json`` asks for; the defaults where it says nothing valid."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        machine, image = machine_from_metadata(data).name, data.get("docker_image_pinning_type")
    except (OSError, ValueError, AttributeError, ManifestError):
        return DEFAULT, IMAGES[0]
    return machine, image if image in IMAGES else IMAGES[0]


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write sorted, indented JSON in one step: the file is the old one or the new one, never half."""
    write_text(path, json.dumps(data, sort_keys=True, indent=1, ensure_ascii=False) + "\n")
