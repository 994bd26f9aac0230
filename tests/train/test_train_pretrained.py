"""Where backbones start: timm's weights, a local checkpoint, another timm network; every refusal is one line."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

import train_tiny
from lumbar.config import BackboneConfig, HeatmapConfig, SagittalRegressionConfig, to_dict
from lumbar.models import build, name_of
from lumbar.models.backbone import Backbone, create_timm
from lumbar_train.__main__ import main
from lumbar_train.errors import TrainingError
from lumbar_train.parameters import own_count, reference_count, table
from lumbar_train.recipes import recipe_by_name
from lumbar_train.stages import pretrained
from lumbar_train.stages.pretrained import Start, backbones, parse_files, with_backbone

NAME = "resnet10t"


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> dict[str, Path]:
    """The same timm weights in the files that people have."""
    folder = tmp_path_factory.mktemp("timm")
    torch.manual_seed(0)
    state = timm.create_model(NAME).state_dict()
    save_file(state, folder / "plain.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, folder / "wrapped.pth")
    return {path.stem: path for path in folder.iterdir()}


def network_of(config) -> torch.nn.Module:
    return build(name_of(config), to_dict(config))


@pytest.mark.parametrize("file", ["plain", "wrapped"])
@pytest.mark.parametrize("channels", [1, 5])
def test_a_local_checkpoint_fills_the_backbone_as_timm_does(local, file, channels):
    network = network_of(SagittalRegressionConfig(BackboneConfig(NAME), size=64, context=channels))
    head = network.head.weight.clone()
    Start(files={NAME: local[file]}).apply(network)
    source = timm.create_model(NAME).eval()
    source.load_state_dict(timm.models.load_state_dict(str(local["plain"])))
    found, first = network.backbone.network.state_dict(), "conv1.0.weight"
    for name, value in found.items():
        if name != first:
            assert torch.equal(value, source.state_dict()[name]), name
    expected = source.state_dict()[first]
    if channels == 1:
        assert torch.allclose(found[first], expected.sum(1, keepdim=True))
    else:
        assert torch.allclose(found[first], expected.repeat(1, 2, 1, 1)[:, :5] * 3 / 5)
    assert torch.equal(network.head.weight, head)


def test_features_of_a_heatmap_network_are_filled_too(local):
    network = network_of(HeatmapConfig(points=2, size=64, context=3, backbone=NAME))
    Start(files={NAME: local["plain"]}).apply(network)
    state = timm.models.load_state_dict(str(local["plain"]))
    assert torch.equal(network.encoder.network.state_dict()["layer1.0.conv1.weight"], state["layer1.0.conv1.weight"])


def test_without_a_wish_nothing_is_touched():
    network = network_of(SagittalRegressionConfig(BackboneConfig(NAME), size=64))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    Start().apply(network)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if "layer3" not in k}, "holds no layer3.0.conv1.weight"),
        (lambda s: s | {"layer2.0.conv1.weight": torch.zeros(2, 2, 3, 3)}, r"layer2.0.conv1.weight has shape \(2, 2"),
    ],
)
def test_a_checkpoint_of_another_network_is_refused(local, tmp_path, spoil, message):
    state = spoil(timm.models.load_state_dict(str(local["plain"])))
    save_file(state, tmp_path / "other.safetensors")
    network = network_of(SagittalRegressionConfig(BackboneConfig(NAME), size=64))
    with pytest.raises(TrainingError, match=message):
        Start(files={NAME: tmp_path / "other.safetensors"}).apply(network)


def test_files_that_are_absent_or_no_checkpoint_are_refused(tmp_path):
    config = BackboneConfig(NAME)
    with pytest.raises(TrainingError, match="not found, expected a timm checkpoint of resnet10t"):
        pretrained.checkpoint(tmp_path / "none.pth", config)
    for name in ("x.safetensors", "x.pth"):
        (tmp_path / name).write_bytes(b"not weights")
        with pytest.raises(TrainingError, match="not a readable checkpoint"):
            pretrained.checkpoint(tmp_path / name, config)


def test_a_pickle_with_code_in_it_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "touched",)

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(TrainingError, match="not a readable checkpoint"):
        pretrained.checkpoint(tmp_path / "evil.pth", BackboneConfig(NAME))
    assert not (tmp_path / "touched").exists()


def nowhere(*args, **kwargs):
    raise OSError("Name or service not known")


def test_without_the_hub_the_refusal_is_one_quick_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(socket, "create_connection", nowhere)
    monkeypatch.setattr(pretrained, "try_to_load_from_cache", lambda *a, **k: None)
    monkeypatch.delenv("HTTPS_PROXY", raising=False)
    monkeypatch.delenv("https_proxy", raising=False)
    command = [
        "train",
        "--data",
        str(train_tiny.empty_competition(tmp_path)),
        "--recipe",
        "model2",
        "--out",
        str(tmp_path / "run"),
        "--device",
        "cpu",
    ]
    assert main(command) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "cannot be reached (Name or service not known)" in lines[0]
    assert "--backbone-weights FILE, or --no-pretrained" in lines[0]
    assert main([*command, "--no-pretrained"]) == 1
    assert "train.csv: not found" in capsys.readouterr().err


def test_altered_networks_and_offline_hubs_are_refused(monkeypatch):
    with pytest.raises(TrainingError, match="resnet10t: altered for this recipe"):
        Start(is_pretrained=True).check(recipe_by_name("demo"))
    monkeypatch.setattr(pretrained, "try_to_load_from_cache", lambda *a, **k: None)
    monkeypatch.setattr(pretrained.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(TrainingError, match="HF_HUB_OFFLINE is set and nothing is cached"):
        pretrained.check_hub(BackboneConfig("resnet18"))
    with pytest.raises(TrainingError, match="no weights for it"):
        pretrained.check_hub(BackboneConfig("resnet10t.none_such_tag"))


def test_another_backbone_takes_the_recipes_place():
    recipe = with_backbone(recipe_by_name("strong"), "convnext_atto")
    assert [config.name for config in backbones(recipe)] == ["convnext_atto"]
    config = replace(recipe.stages["axial_xy"].network, size=64)
    out = network_of(config).eval()(torch.zeros(1, 1, 64, 64))
    assert out.shape == (1, 2, 32, 32)  # its features start at stride 4, the maps are still half the grid
    demo = with_backbone(recipe_by_name("demo"), "resnet18")
    assert demo.stages["sagittal_xy"] == recipe_by_name("demo").stages["sagittal_xy"]  # a plain encoder
    assert demo.stages["axial_all"].network.backbone == BackboneConfig("resnet18")
    with pytest.raises(TrainingError, match="knows no 'resnet9000x'"):
        with_backbone(recipe_by_name("demo"), "resnet9000x")


def test_files_are_named_where_a_recipe_has_several_backbones(tmp_path):
    tiny = train_tiny.tiny()
    assert parse_files(["a.pth"], tiny) == {NAME: Path("a.pth")}
    model2 = recipe_by_name("model2")
    assert parse_files(["efficientnetv2_rw_t=b.pth"], model2) == {"efficientnetv2_rw_t": Path("b.pth")}
    with pytest.raises(TrainingError, match="has backbones efficientnetv2_rw_s, efficientnetv2_rw_t, expected NAME="):
        parse_files(["a.pth"], model2)
    with pytest.raises(TrainingError, match="recipe model2 has no backbone resnet18"):
        Start(files={"resnet18": Path("a.pth")}).check(model2)


def test_counts_are_those_that_the_solution_states():
    """12.6, 22, 19, 32, 69 and 69 million; two of its five axial LSTMs are used, and ours has only those."""
    stated = {
        "axial_xy": 12.6, "sagittal_xy": 22, "sagittal_z": 19, "sagittal_classifier": 32,
        "axial_subarticular": 69, "axial_all": 69,
    }  # fmt: skip
    recipe = recipe_by_name("model2")
    for stage, millions in stated.items():
        assert reference_count(stage) / 1e6 == pytest.approx(millions, rel=0.02), stage
        if not stage.startswith("axial_s") and stage != "axial_all":
            assert own_count(recipe, stage) == pytest.approx(reference_count(stage), rel=0.02), stage
    assert own_count(recipe, "axial_all") / 1e6 == pytest.approx(35, rel=0.02)
    assert len(table(recipe).splitlines()) == 1 + len(recipe.stages)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "maxvit_rmlp_pico_rw_256"])
def test_a_checkpoint_of_another_image_size_fits_the_stages_own(tmp_path, name):
    """timm resamples tables of positions; the rest is taken as it is."""
    config = BackboneConfig(name)
    donor = create_timm(config)
    save_file(donor.state_dict(), tmp_path / "donor.safetensors")
    network = Backbone(config, size=128)
    Start(files={name: tmp_path / "donor.safetensors"}).apply(network)
    own, theirs = network.network.state_dict(), donor.state_dict()
    same = [key for key in own if key in theirs and own[key].shape == theirs[key].shape and own[key].ndim > 1]
    same = [key for key in same if "stem" not in key and "patch_embed" not in key]  # the first takes one channel
    assert len(same) > 20
    assert all(torch.equal(own[key], theirs[key]) for key in same)
