"""A small network, dataset and loss for tests of the loop; importable by the processes that a test starts."""

from __future__ import annotations

import os
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from lumbar.errors import LumbarError
from lumbar_train.engine.distributed import Distributed, join_distributed
from lumbar_train.engine.loop import fit
from lumbar_train.engine.loop_config import LoopConfig
from lumbar_train.engine.sampling import predict

N = 21
SIZE = 8


class ToyDataset:
    """Noisy stripes; a third of the samples weigh four times as much, some nothing."""

    def __init__(self, n: int = N, *, bad: int | None = None, die_after: int | None = None, how: str = "raise") -> None:
        self.n, self.bad, self.left, self.how = n, bad, die_after, how

    def __len__(self) -> int:
        return self.n

    def describe(self, index: int) -> str:
        return f"study {1000 + index}"

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                if self.how == "kill":
                    os.kill(os.getpid(), 9)
                raise KeyboardInterrupt
        label = index % 3
        image = np.sin(np.arange(SIZE) * (label + 1))[:, None] + 0.5 * rng.normal(size=(SIZE, SIZE))
        if index == self.bad:
            image[0, 0] = np.nan
        weight = (1.0, 4.0, 0.0 if index % 7 == 0 else 2.0)[label]
        return {
            "image": torch.from_numpy(image[None].astype(np.float32)),
            "label": torch.tensor(label),
            "weight": torch.tensor(weight),
            "index": torch.tensor(index),
        }

    def collate(self, samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        return {name: torch.stack([s[name] for s in samples]) for name in samples[0]}


def toy_network(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Dropout(dropout),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 3),
    )  # fmt: skip


def toy_loss(network: nn.Module, batch: dict[str, torch.Tensor]):
    logits = network(batch["image"])
    losses = nn.functional.cross_entropy(logits, batch["label"], reduction="none")
    weight = batch["weight"].sum()
    loss = (losses * batch["weight"]).sum() / weight.clamp(min=1e-9)
    hits = ((logits.argmax(1) == batch["label"]) * batch["weight"]).sum() / weight.clamp(min=1e-9)
    return loss, {"weight": weight, "accuracy": hits.detach()}


def toy_validate(network: nn.Module, epoch: int, distributed: Distributed | None = None) -> dict[str, float]:
    dataset = ToyDataset(13)
    out = predict(lambda b: {"logits": network(b["image"])}, dataset, batch_size=4, distributed=distributed, seed=99)
    logits = torch.from_numpy(out["logits"])
    labels = torch.arange(13) % 3
    np.random.rand()  # noqa: NPY002 - a careless validation that draws from the global generator
    return {"loss": float(nn.functional.cross_entropy(logits, labels)), "n": float(len(logits))}


TOY = LoopConfig(
    epochs=3, batch_size=8, accumulate=2, lr=5e-3, ema_decay=0.9, seed=3, checkpoint_seconds=0.0, progress=False
)  # fmt: skip


def run_toy(
    out_dir: Path,
    dataset: ToyDataset,
    config: LoopConfig = TOY,
    *,
    resume: bool = False,
    distributed: Distributed | None = None,
    dropout: float = 0.2,
):
    return fit(
        toy_network(dropout),
        dataset,
        toy_loss,
        config=config,
        validate=lambda network, epoch: toy_validate(network, epoch, distributed),
        out_dir=out_dir,
        resume=resume,
        distributed=distributed,
    )


def say_slowly(error: Exception) -> None:
    """The first process at once, the others when it would have ended if it did not wait for them."""
    time.sleep(3.0 * int(os.environ["RANK"]))
    traceback.print_exception(error)


def main() -> None:
    """``kill OUT N`` is killed at sample N; ``distributed OUT N_SAMPLES [BAD]`` runs under torchrun."""
    torch.set_num_threads(1)
    task, out_dir = sys.argv[1], Path(sys.argv[2])
    if task == "kill":
        run_toy(out_dir, ToyDataset(die_after=int(sys.argv[3]), how="kill"))
        return
    bad = int(sys.argv[4]) if len(sys.argv) > 4 else None
    try:
        with join_distributed("cpu", say_slowly) as distributed:
            run_toy(
                out_dir,
                ToyDataset(int(sys.argv[3]), bad=bad),
                replace(TOY, accumulate=1),
                distributed=distributed,
                dropout=0.0,
            )
    except LumbarError as error:  # it has been said
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
