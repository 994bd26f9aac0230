"""Networks from a bundle: nothing is built, downloaded or allocated that the file of weights does not bear out."""

import json
import resource
import socket
import struct
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from kernel_bundles import write_bundle
from lumbar.bundle.manifest import WeightEntry, read_manifest
from lumbar.bundle.probes import check_probe, record_probe
from lumbar.bundle.weights import load_network, load_networks, save_network
from lumbar.config import AxialClassifierConfig, BackboneConfig, HeatmapConfig, to_dict
from lumbar.errors import ManifestError
from lumbar.models import build, expected_shapes
from lumbar.models.backbone import create_timm

CONFIG = HeatmapConfig(points=2, size=32, context=1, widths=(8, 16), segments=0)


@pytest.fixture
def entry():
    return WeightEntry("w.safetensors", "0" * 64, 1, "axial_xy", "heatmap", to_dict(CONFIG), -1, {}, {})


@pytest.fixture
def file(tmp_path):
    save_network(build("heatmap", to_dict(CONFIG)), tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


@pytest.fixture
def _no_network(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


NAMES = [
    "hf-hub:timm/resnet10t",
    "hf_hub:x/y",
    "local-dir:/tmp",
    "/tmp/x",
    "../x",
    "a/b",
    "https://x.org",
    "",
    "a b",
    "x" * 200,
]


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize("name", NAMES)
def test_a_backbone_that_is_a_place_is_refused_before_timm_sees_it(name):
    with pytest.raises(ManifestError, match="expected the name of a timm network"):
        create_timm(BackboneConfig(name))
    with pytest.raises(ManifestError, match="expected the name of a timm network"):
        build("axial_regression", {"backbone": {"name": name}})
    if name:
        with pytest.raises(ManifestError, match="expected the name of a timm network"):
            build("heatmap", {"points": 2, "backbone": name})


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ({"name": "no_such_net"}, "no_such_net: timm .* cannot build it"),
        ({"name": "resnet10t", "norm": "group", "channels": [6, 6, 6, 6], "stem_width": 6}, "cannot be built|build it"),
        ({"name": "vit_tiny_patch16_224", "channels": [8, 8, 8, 8]}, "cannot be built|build it"),
        ({"name": "resnet10t", "channels": [8]}, "cannot be built|build it"),
    ],
)
def test_what_timm_and_torch_refuse_ends_in_one_line(backbone, message):
    with pytest.raises(ManifestError, match=message) as caught:
        build("axial_regression", {"backbone": backbone})
    assert "\n" not in str(caught.value)


def test_shapes_are_those_of_the_network_and_cost_no_memory():
    small = to_dict(AxialClassifierConfig(BackboneConfig("resnet10t", channels=(8, 8, 16, 16), stem_width=8), hidden=8))
    network = build("axial_classifier", small)
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert expected_shapes("axial_classifier", small) == expected
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    huge = to_dict(AxialClassifierConfig(BackboneConfig("resnet10t"), hidden=4096))
    assert expected_shapes("axial_classifier", huge)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB; its LSTM alone has 1 GB


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": [1024] * 8}, "encoder.blocks.0.0.weight: found shape .8, 1, 3, 3., expected .1024, 1, 3, 3."),
        ({"points": 64}, "head.weight: found shape .2, .*, expected .64, "),
        ({"widths": [8, 16, 16]}, "encoder.blocks.2.0.weight is missing"),
        ({"backbone": "resnet10t"}, "encoder.network.* is missing"),
    ],
)
def test_a_config_that_the_file_does_not_bear_out_is_refused_before_it_is_built(
    entry, file, changes, message, monkeypatch
):
    expected_shapes(entry.model, entry.config | changes)  # on torch's meta device
    monkeypatch.setattr("lumbar.bundle.weights.build", lambda *_: pytest.fail("the network was built"))
    with pytest.raises(ManifestError, match=rf"w\.safetensors: tensors do not fit model 'heatmap' .*{message}"):
        load_network(file, replace(entry, config=entry.config | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": to_dict(CONFIG) | {"points": 3}}, "w.safetensors: found 3 points, expected 2 for axial_xy"),
        ({"stage": "sagittal_xy"}, "w.safetensors: found 2 points, expected 11 for sagittal_xy"),
        (
            {"stage": "aggregator", "model": "aggregator", "config": {"models": ["a"]}},
            r"w.safetensors: found models .'a'., expected .'sagittal_classifier', 'axial_subarticular', 'axial_all'.",
        ),
    ],
)
def test_a_network_that_the_chain_cannot_use_is_refused_before_any_study(entry, file, changes, message):
    manifest = read_manifest(write_bundle(file.parent / "bundle"))
    with pytest.raises(ManifestError, match=message):
        load_networks(manifest.folder, replace(manifest, weights=(replace(entry, **changes),)))


def test_tensors_too_many_are_refused(entry, file):
    save_file(load_file(file) | {"x\x1b[0m": torch.zeros(1)}, file)
    with pytest.raises(ManifestError, match=r"found 'x\\x1b\[0m', which the network does not have"):
        load_network(file, entry)


def header(values, data=b""):
    text = json.dumps(values).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        struct.pack("<Q", 10**17) + b"{}",
        header([]),
        header({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4]}}, bytes(4)),
        header({"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]}}),
        header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 10**12]}}, bytes(4)),
        header({"a": {"dtype": "F33", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
        header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, bytes(4)),
        b"\x80\x04cos\nsystem\n(S'echo'\ntR.",
    ],
)
def test_a_file_that_lies_about_its_tensors_is_refused(entry, tmp_path, content):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(ManifestError, match=r"w\.safetensors: (not readable as safetensors|tensors do not fit)"):
        load_network(path, entry)


def test_a_probe_whose_inputs_are_others_is_refused(entry, file):
    network = load_network(file, entry)
    probe = record_probe(network)
    check_probe(network, probe, "w")
    with pytest.raises(ManifestError, match=r"w: found probe inputs .*, expected \{'input0': \[2, 1, 32, 32\]\}"):
        check_probe(network, probe | {"inputs": {"input0": [2, 1, 64, 64]}}, "w")
    with pytest.raises(ManifestError, match=r"w: found probe \{\}, expected seed, expected, tolerance"):
        check_probe(network, {}, "w")
