"""A whole bundle of small untrained networks: everything runs, nothing means anything."""

import hashlib
import json

import torch

from kernel_bundles import manifest_data
from lumbar.bundle.manifest import read_manifest, write_manifest
from lumbar.bundle.probes import record_probe
from lumbar.bundle.weights import load_network, save_network
from lumbar.config import (
    AggregatorConfig,
    AxialClassifierConfig,
    BackboneConfig,
    HeatmapConfig,
    SagittalClassifierConfig,
    SliceRoleConfig,
    to_dict,
)
from lumbar.models import build, name_of

_SMALL = BackboneConfig("resnet10t", channels=(8, 8, 16, 16), stem_width=8)
_CROPS = {"hidden": 8, "level_embedding": 4, "position_embedding": 4}
CONFIGS = {
    "sagittal_xy": HeatmapConfig(points=11, size=64, mm_per_px=5.0, context=3, widths=(8, 8, 8)),
    "sagittal_z": SliceRoleConfig(_SMALL, size=32, hidden=8),
    "axial_xy": HeatmapConfig(points=2, size=64, mm_per_px=3.0, context=1, widths=(8, 8, 8), segments=0),
    "sagittal_classifier": SagittalClassifierConfig(_SMALL, size=32, window=3, **_CROPS),
    "axial_subarticular": AxialClassifierConfig(_SMALL, conditions=(3, 4), size=32, window=3, **_CROPS),
    "axial_all": AxialClassifierConfig(_SMALL, conditions=(0, 1, 2, 3, 4), size=32, window=3, **_CROPS),
    "aggregator": AggregatorConfig(hidden=8),
}


def write_untrained_bundle(folder, seed=0, configs=CONFIGS, **more):
    """Build, save, and probe a network for every stage of ``configs``; ``more`` fields go into the manifest."""
    (folder / "weights").mkdir(parents=True)
    torch.manual_seed(seed)
    files = {}
    for stage, config in configs.items():
        name = f"weights/{stage}.full.safetensors"
        save_network(build(name_of(config), to_dict(config)), folder / name)
        files[name] = (folder / name).read_bytes()
    data = manifest_data(files, **more)
    for entry, (stage, config) in zip(data["weights"], configs.items(), strict=True):
        entry.update(stage=stage, model=name_of(config), config=to_dict(config))
        assert entry["sha256"] == hashlib.sha256(files[entry["file"]]).hexdigest()
    (folder / "weights_manifest.json").write_text(json.dumps(data))
    for entry, parsed in zip(data["weights"], read_manifest(folder).weights, strict=True):
        entry["probe"] = record_probe(load_network(folder / parsed.file, parsed))
    write_manifest(folder / "weights_manifest.json", data)
    return folder
