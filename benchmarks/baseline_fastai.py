"""Compares fine-tuning with fastai itself: same body, same images, same schedule, five seeds each, in turn.

Prints the validation accuracy of every seed, its mean, range and standard deviation for both sides, and seconds an
epoch. Needs the extra ``fastai-check``, best in an environment of its own; without it the script says so and ends
well. The images are drawn here: three kinds of discs with noise, hard enough that neither side classifies all of them.
Each side draws order, dropout and augmentation for itself, so single seeds differ. That both compute the same from the
same random numbers is tested in tests/train/baseline/test_baseline_fastai.py: losses and weights of every step of both
cycles, and the pixels of the augmentation.

The body is by default the kit's small one (0.5 M parameters), on which all ten fits take a few minutes of one core
and enough images and epochs can be afforded that the accuracy settles. ``--arch resnet18 --epochs 1 --seeds 1`` gives
the time of a usual one.

    python benchmarks/baseline_fastai.py [--arch small] [--images 1200] [--epochs 8] [--seeds 5] [--lr-mult 2]
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch

from lumbar.chains.baseline import slice_logits
from lumbar.config import BackboneConfig, BaselineConfig
from lumbar.models.baseline import BaselineNet
from lumbar_train.baseline.network import make_network, parameter_groups
from lumbar_train.baseline.settings import ARCHS
from lumbar_train.baseline.tune import Samples, Tuner, phases
from lumbar_train.engine.distributed import pick_device

COLUMN = "spinal_canal_stenosis_l4_l5"


def clock() -> float:
    """Seconds of this process's own work on a CPU, whatever else the machine does; of the wall on a GPU."""
    return time.process_time() if pick_device("auto").type == "cpu" else time.monotonic()


def draw(n: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Grey pictures (n, size, size) uint8 of three classes: how strongly a disc is pressed in from one side."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size - 0.5
    classes = np.arange(n) % 3
    pictures = np.empty((n, size, size), np.uint8)
    for k, grade in enumerate(classes):
        cx, cy = rng.normal(0, 0.06, 2)
        radius = rng.uniform(0.22, 0.3)
        inside = (x - cx) ** 2 + (y - cy) ** 2 < radius**2
        depth = radius * (0.12 + 0.32 * grade + rng.normal(0, 0.09))
        dented = inside & (x - cx < radius - depth)
        picture = 60 + 110 * dented + 18 * np.sin(9 * (x * rng.uniform(0.5, 2) + y)) + rng.normal(0, 22, x.shape)
        pictures[k] = np.clip(picture, 0, 255)
    return pictures, classes


Images = tuple[np.ndarray, np.ndarray]  # (n, size, size) uint8 and their classes (n,)


def network_for(arch: str, size: int, seed: int) -> BaselineNet:
    """The same initial weights for both sides."""
    return make_network(BaselineConfig(ARCHS.get(arch, BackboneConfig(arch)), COLUMN, size=size), seed)


def ours(
    arch: str, train: Images, valid: Images, *, seed: int, epochs: int, rate: float, batch: int, lr_mult: float
) -> tuple[float, float]:
    """Accuracy and seconds an epoch of this kit's fine-tuning."""
    network = network_for(arch, train[0].shape[1], seed)
    samples = Samples(train[0], train[1].astype(np.int64), np.arange(len(train[1])))
    tuner = Tuner(network, samples, batch_size=batch, weight_decay=0.01, seed=seed, device=pick_device("auto"))
    started = clock()
    tuner.run(phases(rate, epochs, 1, lr_mult))
    seconds = (clock() - started) / (epochs + 1)
    network.eval()
    predicted = slice_logits(network, valid[0]).argmax(axis=1)
    return float((predicted == valid[1]).mean()), seconds


def theirs(
    arch: str, train: Images, valid: Images, *, seed: int, epochs: int, rate: float, batch: int, lr_mult: float
) -> tuple[float, float]:
    """The same of fastai: the same body from timm with one channel, ``vision_learner``'s head, ``fine_tune``."""
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.losses import CrossEntropyLossFlat
    from fastai.torch_core import set_seed
    from fastai.vision.augment import Brightness, Contrast, Rotate, Warp, Zoom, setup_aug_tfms
    from fastcore.foundation import L
    from torch.utils.data import TensorDataset

    set_seed(seed, reproducible=False)
    network = network_for(arch, train[0].shape[1], seed)
    images = [torch.from_numpy(part[0])[:, None].float() / 255 for part in (train, valid)]
    labels = [torch.from_numpy(part[1].astype(np.int64)) for part in (train, valid)]
    sets = [TensorDataset(*pair) for pair in zip(images, labels, strict=True)]
    sets[1] = torch.utils.data.Subset(sets[1], range(batch))  # a short validation, because training is timed
    device = pick_device("auto")
    loaders = DataLoaders.from_dsets(*sets, bs=batch, num_workers=0, device=device)
    warps = setup_aug_tfms([Rotate(10.0, p=0.75), Zoom(max_zoom=1.1, p=0.75), Warp(0.2, p=0.75),
                            Brightness(0.2, p=0.75), Contrast(0.2, p=0.75)])  # fmt: skip

    def augment_batch(learner: Any) -> None:
        if learner.training:
            from fastai.vision.core import TensorImage

            value = TensorImage(learner.xb[0])
            for step in warps:
                value = step(value, split_idx=0)
            learner.learn.xb = (value.as_subclass(torch.Tensor),)

    from fastai.callback.core import Callback
    from fastai.callback.schedule import fit_one_cycle  # noqa: F401 - patches Learner

    class Augment(Callback):
        def before_batch(self) -> None:
            augment_batch(self)

    def splitter(model: BaselineNet) -> list[Any]:
        return [L([*g.weights, *g.biases, *g.norms]) for g in parameter_groups(model)]

    learner = Learner(loaders, network, loss_func=CrossEntropyLossFlat(), splitter=splitter, cbs=[Augment()])
    with learner.no_bar(), learner.no_logging():
        started = clock()
        learner.fine_tune(epochs, base_lr=rate, freeze_epochs=1, lr_mult=lr_mult)
        seconds = (clock() - started) / (epochs + 1)
    network.eval()
    predicted = slice_logits(network, valid[0]).argmax(axis=1)
    return float((predicted == valid[1]).mean()), seconds


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="small", help="small, or a timm name")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--images", type=int, default=1200, help="to train on")
    parser.add_argument("--valid", type=int, default=1500, help="to measure the accuracy on")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--lr-mult", type=float, default=2.0, help="at 10 the seeds spread more than twice as wide")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--only", choices=("ours", "fastai"), help="one side alone")
    options = parser.parse_args()
    sides = {"ours": ours}
    try:
        import fastai
        import fastai.callback.schedule
        import fastai.vision.augment

        sides["fastai"] = theirs
        print(f"fastai {fastai.__version__}, torch {torch.__version__}, {options}")
    except ImportError as error:
        print(f"fastai is not installed ({error}): pip install '.[fastai-check]' in an environment of its own")
    train, valid = draw(options.images, options.size, 1), draw(options.valid, options.size, 2)
    names = [name for name in sides if options.only in (None, name)]
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for seed in range(options.seeds):
        for name in names:
            pair = sides[name](options.arch, train, valid, seed=seed, epochs=options.epochs, rate=options.lr,
                               batch=options.batch, lr_mult=options.lr_mult)  # fmt: skip
            print(f"  seed {seed} {name:<7} accuracy {pair[0]:.3f}, {pair[1]:.2f} s an epoch", flush=True)
            results[name].append(pair)
    for name in names:
        accuracy = np.array([pair[0] for pair in results[name]])
        print(
            f"{name:<7} accuracy {accuracy.mean():.3f}, from {accuracy.min():.3f} to {accuracy.max():.3f}, standard "
            f"deviation {accuracy.std(ddof=min(1, len(accuracy) - 1)):.3f}; "
            f"{np.median([pair[1] for pair in results[name]]):.2f} s an epoch"
        )


if __name__ == "__main__":
    main()
