import dataclasses

import numpy as np
import pytest
import torch

from lumbar.config import (
    LIMITS,
    AggregatorConfig,
    AxialClassifierConfig,
    AxialRegressionConfig,
    BackboneConfig,
    HeatmapConfig,
    SagittalClassifierConfig,
    SagittalRegressionConfig,
    SliceRoleConfig,
    from_dict,
    to_dict,
)
from lumbar.errors import ManifestError
from lumbar.models import build, name_of
from lumbar.models.sequence import MaskedBiLSTM

SMALL = BackboneConfig("resnet10t", channels=(8, 16, 24, 32), stem_width=16, norm="group")
SIZES = {"hidden": 12, "level_embedding": 4, "position_embedding": 4}


def network(config, seed=0):
    torch.manual_seed(seed)
    return build(name_of(config), to_dict(config)).eval()


def test_a_lstm_answer_depends_on_neither_padding_nor_batch_mates():
    torch.manual_seed(0)
    rnn = MaskedBiLSTM(6, 5).eval()
    steps = torch.randn(3, 7, 6)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0, 0], [0, 1, 1, 0, 1, 1, 0], [1] * 7], dtype=torch.bool)
    together = rnn(steps, mask)
    for row in range(3):
        alone = rnn(steps[row : row + 1, mask[row]], mask[row : row + 1, mask[row]])
        torch.testing.assert_close(together[row, mask[row]], alone[0], atol=1e-6, rtol=1e-5)
    assert (together[~mask] == 0).all()


def test_a_sequence_without_any_step_is_zero_and_harms_no_other():
    rnn = MaskedBiLSTM(6, 5).eval()
    out = rnn(torch.randn(2, 4, 6), torch.tensor([[False] * 4, [True] * 4]))
    assert (out[0] == 0).all()
    assert out[1].abs().sum() > 0


@pytest.mark.parametrize(
    "config",
    [
        SliceRoleConfig(SMALL, size=32, hidden=8),
        SagittalClassifierConfig(SMALL, size=32, window=3, share_sides=True, **SIZES),
        SagittalClassifierConfig(SMALL, size=32, window=3, **SIZES),
        AxialClassifierConfig(SMALL, size=32, window=3, conditions=(0, 1, 2, 3, 4), share_sides=True, **SIZES),
        AxialClassifierConfig(SMALL, size=32, window=3, conditions=(3, 4), **SIZES),
    ],
    ids=lambda config: type(config).__name__,
)
def test_batch_mates_change_nothing(config):
    net = network(config)
    n, s = 4, 3
    if isinstance(config, SliceRoleConfig):
        inputs = (torch.rand(n, s, 32, 32), torch.rand(n, s) > 0.3)
    else:
        shape = (n, 3, s) if isinstance(config, SagittalClassifierConfig) else (n, s)
        inputs = (torch.rand(*shape, 32, 32), torch.rand(*shape) > 0.3, torch.arange(n) % 5)
    with torch.no_grad():
        together = net(*inputs)
        alone = torch.cat([net(*(x[i : i + 1] for x in inputs)) for i in range(n)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_shared_sides_answer_a_mirrored_patient_with_sides_changed_over():
    axial = network(
        AxialClassifierConfig(SMALL, size=32, window=3, conditions=(0, 1, 2, 3, 4), share_sides=True, **SIZES)
    )
    crops, mask, level = torch.rand(2, 3, 32, 32), torch.ones(2, 3, dtype=torch.bool), torch.tensor([0, 4])
    with torch.no_grad():
        plain, other = axial(crops, mask, level), axial(crops.flip(-1), mask, level)
    torch.testing.assert_close(plain[:, [0, 2, 1, 4, 3]], other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("window", "condition"), [(0, 0), (1, 1), (2, 2)])
def test_each_sagittal_head_reads_its_own_sequence_alone(window, condition):
    """Window 0 is the canal's, 1 the left and 2 the right foramen's; the other two change nothing, there or not."""
    net = network(SagittalClassifierConfig(SMALL, size=32, window=3, own_sequences=True, **SIZES))
    crops, mask, level = torch.rand(1, 3, 3, 32, 32), torch.ones(1, 3, 3, dtype=torch.bool), torch.tensor([2])
    others = [k for k in range(3) if k != window]
    changed, without = crops.clone(), mask.clone()
    changed[:, others] = torch.rand(1, 2, 3, 32, 32)
    without[:, others] = False
    own = crops.clone()
    own[:, window] = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        plain = net(crops, mask, level)[0, condition]
        torch.testing.assert_close(net(changed, mask, level)[0, condition], plain)
        torch.testing.assert_close(net(crops, without, level)[0, condition], plain)
        assert (net(own, mask, level)[0, condition] - plain).abs().max() > 1e-4


def test_an_older_configuration_answers_as_it_did():
    """Without the newer keys one mean of the three sequences feeds every head."""
    values = to_dict(SagittalClassifierConfig(SMALL, size=32, window=3, **SIZES))
    del values["own_sequences"]
    torch.manual_seed(0)
    net = build("sagittal_classifier", values).eval()
    crops, mask, level = torch.rand(1, 3, 3, 32, 32), torch.ones(1, 3, 3, dtype=torch.bool), torch.tensor([2])
    changed = crops.clone()
    changed[:, 1] = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        moved = (net(crops, mask, level) - net(changed, mask, level))[0, :3].abs().amax(dim=1)
    assert (moved > 1e-5).all()


def test_masked_windows_do_not_reach_the_logits():
    net = network(SagittalClassifierConfig(SMALL, size=32, window=3, share_sides=True, **SIZES))
    crops, mask = torch.rand(1, 3, 3, 32, 32), torch.ones(1, 3, 3, dtype=torch.bool)
    mask[0, 1] = False
    changed = crops.clone()
    changed[0, 1] = 0.123
    with torch.no_grad():
        torch.testing.assert_close(net(crops, mask, torch.tensor([2])), net(changed, mask, torch.tensor([2])))


def test_the_untrained_aggregator_is_the_mean_of_what_was_seen_and_the_prior_elsewhere():
    net = network(AggregatorConfig(models=("a", "b")))
    logits = torch.randn(1, 2, 5, 5, 3)
    mask = torch.ones(1, 2, 5, 5, dtype=torch.bool)
    mask[0, 1, 3] = False
    mask[0, :, 4] = False
    prior = torch.log_softmax(torch.randn(5, 5, 3), -1)
    with torch.no_grad():
        out = net(logits, mask, prior)
    torch.testing.assert_close(out[0, 0], torch.log_softmax(logits[0, :, 0], -1).mean(0))
    torch.testing.assert_close(out[0, 3], torch.log_softmax(logits[0, 0, 3], -1))
    torch.testing.assert_close(out[0, 4], prior[4])


def test_the_aggregator_treats_both_sides_alike():
    net = network(AggregatorConfig(models=("a",)))
    for group in net.groups:
        torch.nn.init.normal_(group[-1].weight)
    logits, prior = torch.randn(2, 1, 5, 5, 3), torch.log_softmax(torch.randn(5, 5, 3), -1)
    prior[2], prior[4] = prior[1], prior[3]
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    order = [0, 2, 1, 4, 3]
    with torch.no_grad():
        torch.testing.assert_close(
            net(logits, mask, prior)[:, order][:, 1:], net(logits[:, :, order], mask, prior)[:, 1:]
        )


def test_an_unknown_key_or_model_is_refused_by_name():
    values = to_dict(HeatmapConfig(points=3)) | {"colour": 1}
    with pytest.raises(ManifestError, match=r"HeatmapConfig: unknown keys \['colour'\]"):
        build("heatmap", values)
    with pytest.raises(ManifestError, match="model 'unet': unknown, expected one of"):
        build("unet", {})
    with pytest.raises(ManifestError, match=r"no_such_net: timm .* cannot build it"):
        build("axial_regression", {"backbone": {"name": "no_such_net"}})


def test_configurations_survive_json():
    for config in (
        AxialClassifierConfig(SMALL),
        SagittalRegressionConfig(SMALL),
        AxialRegressionConfig(SMALL),
        HeatmapConfig(points=2),
    ):
        assert from_dict(type(config), to_dict(config)) == config


def test_heatmaps_are_half_the_grid_and_start_almost_empty():
    net = network(HeatmapConfig(points=4, size=64, segments=3, widths=(8, 16, 24)))
    with torch.no_grad():
        out = net(torch.rand(2, 3, 64, 64))
    assert out.shape == (2, 7, 32, 32)
    assert np.isfinite(out.numpy()).all()
    assert float(torch.sigmoid(out[:, :4]).mean()) < 0.1


def test_every_field_of_every_configuration_has_its_limits():
    for kind, limits in LIMITS.items():
        assert limits.keys() == {field.name for field in dataclasses.fields(kind)}, kind.__name__
