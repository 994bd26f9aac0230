"""What only a GPU shows. ``make gpu`` runs these; without one they are left out."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lumbar.config import AxialClassifierConfig, SagittalClassifierConfig, to_dict
from lumbar.models import build, name_of
from lumbar_train.data.augment import SOLUTION_AUGMENT
from lumbar_train.data.batched import finished
from lumbar_train.data.mixing import MixConfig
from lumbar_train.engine.distributed import Distributed
from lumbar_train.engine.fold_pool import usable_devices
from lumbar_train.engine.loop import fit
from lumbar_train.engine.loop_config import LoopConfig
from lumbar_train.engine.sampling import to_device
from lumbar_train.stages.classify import LevelCrops
from lumbar_train.stages.losses import graded_loss
from stage_studies import localisation_of, study_of
from train_tiny import SMALL, write_cohort

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
TWO = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
SUPPORT = Path(__file__).resolve().parents[1] / "support"
SIZES = {"size": 64, "hidden": 16, "level_embedding": 4, "position_embedding": 4, "max_slices": 12, "per_series": True}
CONFIGS = [
    SagittalClassifierConfig(SMALL, own_sequences=True, conditions=(0, 1, 2, 3, 4), **SIZES),
    AxialClassifierConfig(SMALL, conditions=(0, 1, 2, 3, 4), **SIZES),
]


class OneStudy:
    def __init__(self):
        self.item = study_of()

    def study(self, study_id):
        return self.item


def data_of(config, **changes) -> LevelCrops:
    labels = {k: np.random.default_rng(k).integers(0, 3, 25).astype(np.int8) for k in range(7, 15)}
    places = dict.fromkeys(labels, localisation_of(study_of()))
    augment = replace(SOLUTION_AUGMENT, **changes)
    return LevelCrops(OneStudy(), places, labels, config, augment, MixConfig(cutmix=0.3, mixup=0.3))


def fitted(config, folder, device: str = "cuda", **options):
    torch.manual_seed(0)
    network = build(name_of(config), to_dict(config))
    settings = LoopConfig(epochs=2, batch_size=8, lr=1e-3, progress=False, **options)
    distributed = Distributed(device=torch.device(device))
    return fit(network, data_of(config), graded_loss, config=settings, out_dir=folder, distributed=distributed)


@pytest.mark.parametrize("config", CONFIGS)
def test_the_gpu_makes_the_images_that_the_cpu_makes(config):
    data = data_of(config, noise=0.0)
    batch = data.collate([data.sample(k, np.random.default_rng(k)) for k in range(8)])
    here, there = finished(batch)["crops"], finished(to_device(batch, torch.device("cuda")))["crops"].cpu()
    assert float((here - there).abs().mean()) < 1e-3
    assert float(((here - there).abs() > 0.02).float().mean()) < 1e-3  # edges of holes may fall on either pixel


@pytest.mark.parametrize("amp", ["fp16", "bf16", "auto"])
@pytest.mark.parametrize("config", CONFIGS)
def test_half_precision_follows_float32(config, amp, tmp_path):
    if amp == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU does not compute in bf16")
    losses = [fitted(config, tmp_path / name, amp=name).history[-1]["loss"] for name in ("off", amp)]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


@pytest.mark.parametrize("config", CONFIGS)
def test_a_compiled_network_follows_the_plain_one(config, tmp_path):
    losses = [
        fitted(config, tmp_path / str(flag), amp="off", compile=flag).history[-1]["loss"] for flag in (False, True)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_loader_processes_change_no_sample(tmp_path):
    config = CONFIGS[1]
    losses = [fitted(config, tmp_path / str(n), amp="off", workers=n).history[-1]["loss"] for n in (0, 3)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def run_tiny(tmp_path: Path, *words: str, launcher: tuple[str, ...] = ()) -> None:
    root = tmp_path / "cohort"
    if not root.is_dir():
        root.mkdir()
        write_cohort(root, 8)
    script = [str(SUPPORT / "train_tiny.py"), "train", "--data", str(root), "--recipe", "tiny"]
    start = launcher or (sys.executable,)
    done = subprocess.run([*start, *script, *words], capture_output=True, text=True, timeout=900, cwd=SUPPORT)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_whole_run_on_a_gpu_augments_there(tmp_path):
    run_tiny(tmp_path, "--out", str(tmp_path / "run"), "--set", "*.on_device=true", "--set", "*.epochs=1")
    assert (tmp_path / "run/export/weights_manifest.json").is_file()


@TWO
def test_two_folds_go_side_by_side_on_two_gpus(tmp_path):
    assert len(usable_devices()) >= 2
    run_tiny(tmp_path, "--out", str(tmp_path / "run"), "--jobs", "2", "--set", "*.epochs=1")
    assert (tmp_path / "run/export/weights_manifest.json").is_file()


@TWO
def test_two_processes_on_one_fit_exchange_gradients_by_nccl(tmp_path):
    torchrun = str(Path(sys.executable).with_name("torchrun"))
    launcher = (torchrun, "--standalone", "--nproc-per-node=2")
    run_tiny(tmp_path, "--out", str(tmp_path / "run"), "--set", "*.epochs=1", launcher=launcher)
    assert (tmp_path / "run/export/weights_manifest.json").is_file()
