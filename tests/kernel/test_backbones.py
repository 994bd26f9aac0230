"""timm families with windows, relative positions or position tables, as extractors of every stage."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from lumbar.bundle.manifest import WeightEntry
from lumbar.bundle.probes import check_probe, probe_inputs, record_probe
from lumbar.bundle.weights import load_network, save_network
from lumbar.config import (
    AxialClassifierConfig,
    AxialRegressionConfig,
    BackboneConfig,
    BaselineConfig,
    HeatmapConfig,
    SagittalClassifierConfig,
    SagittalRegressionConfig,
    SliceRoleConfig,
    to_dict,
)
from lumbar.errors import ManifestError
from lumbar.labels import COLUMNS
from lumbar.models import build, name_of
from lumbar.models.backbone import Backbone, is_fixed_size
from lumbar.models.examples import example_size
from lumbar.models.inference import forward

# One of each family, the smallest that timm names.
COATNET, SWIN, VIT, MAXVIT = (
    "coatnet_pico_rw_224.untrained", "swin_tiny_patch4_window7_224", "vit_tiny_patch16_224", "maxvit_rmlp_pico_rw_256",
)  # fmt: skip
FIXED = (COATNET, SWIN, VIT, MAXVIT)
FREE = ("efficientnetv2_rw_t", "convnext_atto", "mobilenetv3_small_050")
SIZES = {"window": 3, "hidden": 8, "level_embedding": 4, "position_embedding": 4}


def stage_configs(name: str, size: int) -> list:
    small = BackboneConfig(name)
    return [
        SliceRoleConfig(small, size=size, hidden=8),
        SagittalRegressionConfig(small, size=size, context=5),
        AxialRegressionConfig(small, size=size),
        SagittalClassifierConfig(small, size=size, **SIZES),
        AxialClassifierConfig(small, size=size, **SIZES),
        HeatmapConfig(points=2, size=size, context=3, segments=0, backbone=name),
        BaselineConfig(small, column=COLUMNS[0], size=size, hidden=8),
    ]


def sealed(config, folder: Path):
    """A network through its file, as the kernel gets it, and the probe recorded when it was written."""
    torch.manual_seed(0)
    network = build(name_of(config), to_dict(config)).eval()
    path = folder / "network.safetensors"
    save_network(network, path, half=True)
    values = {
        "file": path.name, "sha256": "", "bytes": 0, "stage": "axial_xy", "model": name_of(config),
        "config": to_dict(config), "fold": -1, "metrics": {}, "probe": {},
    }  # fmt: skip
    loaded = load_network(path, WeightEntry(**values))
    return loaded, record_probe(loaded)


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("kind", [AxialRegressionConfig, HeatmapConfig, AxialClassifierConfig])
def test_each_family_runs_at_its_stages_size_and_its_probe_holds(name, kind, tmp_path):
    (config,) = (c for c in stage_configs(name, 160) if type(c) is kind)  # neither timm's size nor a probe's usual one
    network, probe = sealed(config, tmp_path)
    assert example_size(network.config) == 160
    out = forward(network, *probe_inputs(network, 3))
    assert torch.isfinite(out).all()
    if kind is HeatmapConfig:
        assert out.shape[1:] == (2, 80, 80)
    check_probe(network, probe, "network")


@pytest.mark.parametrize("config", stage_configs(VIT, 96), ids=lambda config: type(config).__name__)
def test_every_stage_takes_a_backbone_of_fixed_size(config, tmp_path):
    network, probe = sealed(config, tmp_path)
    check_probe(network, probe, "network")


@pytest.mark.parametrize("name", [*FREE, VIT])
def test_features_are_those_that_the_network_gives(name):
    backbone = Backbone(BackboneConfig(name), size=96).eval()
    with torch.no_grad():
        assert backbone(torch.rand(2, 1, 96, 96)).shape == (2, backbone.features)


@pytest.mark.parametrize("name", FREE)
def test_others_keep_their_small_probes_and_take_any_size(name):
    config = AxialRegressionConfig(BackboneConfig(name), size=224)
    network = build(name_of(config), to_dict(config))
    assert not is_fixed_size(name)
    assert example_size(network.config) == 128


def test_a_size_that_a_network_cannot_take_is_one_line():
    with pytest.raises(ManifestError) as caught:  # windows of 100 // 32 pixels do not divide 100 / 4
        Backbone(BackboneConfig(MAXVIT), size=100)
    assert MAXVIT in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(ManifestError, match=f"backbone no_such_net: timm {timm.__version__} cannot build it"):
        Backbone(BackboneConfig("no_such_net"), size=64)
