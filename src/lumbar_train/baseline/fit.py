"""One column and fold: split, upsample, find the rate, tune, predict what was held out. Written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from lumbar.chains.baseline import slice_logits
from lumbar.io.tables import csv_text
from lumbar.labels import COLUMNS, SEVERITIES
from lumbar.models.baseline import BaselineNet
from lumbar_train.baseline.balance import Split, check_images, split_images, upsample
from lumbar_train.baseline.finder import Curve, find_rate
from lumbar_train.baseline.network import freeze, make_network, make_optimizer
from lumbar_train.baseline.settings import Settings
from lumbar_train.baseline.tune import Phase, Samples, Tuner, more, phases, train_until
from lumbar_train.data.folds import FULL
from lumbar_train.engine.checkpoint import save_weights
from lumbar_train.engine.distributed import pick_device
from lumbar_train.engine.fold_pool import end_with_parent
from lumbar_train.files import write_text
from lumbar_train.outputs.store import write_frame

LOGITS = ["logit_normal_mild", "logit_moderate", "logit_severe"]
_KEPT_APART = 5  # one study in so many decides when to stop, where that is asked
_FINDER_EPOCH = 10_000  # the range test draws batches and augmentation of its own


@dataclass(frozen=True)
class Job:
    """A fit to be done, in a form that can be sent to a process."""

    column: str
    fold: int  # the fold held out, FULL for none
    settings: Settings
    folder: Path  # of this fit
    work: Path  # of the images
    studies: tuple[int, ...]  # of the cohort
    classes: tuple[int, ...]  # of each study in this column, -1 without label
    held_out: frozenset[int]
    device: str = "auto"

    @property
    def identity(self) -> str:
        """What must be the same for a finished fit to stand: settings, labels, folds and pictures."""
        pictures = json.loads((self.work / "images.json").read_text("utf-8"))["key"]
        settings = asdict(self.settings)
        if settings["amp"] == "auto":  # as it was before that could be chosen: such fits stand
            del settings["amp"]
        content = [settings, self.column, self.fold, self.studies, self.classes, sorted(self.held_out)]
        return hashlib.sha256(json.dumps([content, pictures]).encode()).hexdigest()


def finished(job: Job) -> dict[str, Any] | None:
    """What a fit left, if it is done and of the same settings, studies and pictures."""
    try:
        found: dict[str, Any] = json.loads((job.folder / "fit.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found if found.get("identity") == job.identity else None


def run_fit(job: Job) -> dict[str, Any]:
    """Do the fit unless it is done; returns the content of ``fit.json``, which is written last.

    A fit that was cut short goes on from its last saved epoch, to the same end. Training images of one class alone
    cannot be learnt from: the fit is then ``constant``, with a line that says so, and its columns' prior stands in.

    Raises:
        LeakError: an image, a study or a copy of an image on both sides.
        TrainingError: a loss that is not finite, a disk that is full.
    """
    done = finished(job)
    if done is not None:
        return done
    _forget(job)
    started = time.monotonic()
    table = pd.read_csv(job.work / "images.csv", keep_default_na=False)
    of_study = dict(zip(job.studies, job.classes, strict=True))
    classes = np.array([of_study[int(study)] for study in table["study_id"]], dtype=np.int8)
    train = set(job.studies) - job.held_out
    split = split_images(table, classes, train, set(job.held_out))
    result: dict[str, Any] = {
        "identity": job.identity, "column": job.column, "fold": job.fold, "seen": sorted(train),
        "train_images": len(split.train), "copies_left_out": split.n_copies, "status": "fitted", "reason": "",
    }  # fmt: skip
    present = np.unique(classes[split.train])
    if len(present) < 2:
        found = f"one class ({SEVERITIES[present[0]]})" if len(present) else "no label"
        result |= {"status": "constant", "reason": f"{job.column}, {fold_title(job.fold)}: found {found} among "
                   f"{len(split.train)} training images, expected two or more; its constant stands in"}  # fmt: skip
    else:
        result |= _fit(job, table, classes, split)
    write_text(job.folder / "fit.json", json.dumps(result | {"seconds": time.monotonic() - started}) + "\n")
    return result


def fold_title(fold: int) -> str:
    """``fold 0``, or ``the fit on all data``."""
    return "the fit on all data" if fold == FULL else f"fold {fold}"


def _forget(job: Job) -> None:
    """Remove what a fit of other settings left; a checkpoint of the same ones stays."""
    mark = job.folder / "started.json"
    try:
        is_same = json.loads(mark.read_text("utf-8"))["identity"] == job.identity
    except (OSError, ValueError, KeyError):
        is_same = False
    for name in ("fit.json", "weights.safetensors", "oof.parquet", "log.csv", "finder.csv"):
        (job.folder / name).unlink(missing_ok=True)
    if not is_same:
        (job.folder / "checkpoint.pt").unlink(missing_ok=True)
        write_text(mark, json.dumps({"identity": job.identity}))


def _fit(job: Job, table: pd.DataFrame, classes: NDArray[np.int8], split: Split) -> dict[str, Any]:
    settings = job.settings
    seed = settings.seed * 1009 + COLUMNS.index(job.column) * 31 + job.fold + 1
    learn, apart = _keep_apart(table, split.train, classes, settings, seed)
    rows = upsample(learn, classes[learn], seed)
    check_images(table, rows, split.held_out)
    pixels = np.load(job.work / "images.npy", mmap_mode="r")
    unique, places = np.unique(rows, return_inverse=True)
    samples = Samples(np.ascontiguousarray(pixels[unique]), classes[unique].astype(np.int64), places)
    counts = np.bincount(classes[rows], minlength=3) / len(rows)
    network = make_network(
        settings.network(job.column, (counts[0], counts[1], counts[2])), seed, pretrained=settings.pretrained
    )
    tuner = Tuner(
        network, samples, batch_size=settings.batch_size, weight_decay=settings.weight_decay, seed=seed,
        device=pick_device(job.device), checkpoint=job.folder / "checkpoint.pt", amp=settings.amp,
    )  # fmt: skip
    rate, curve = _rate(job, tuner)
    cycles = phases(rate, settings.epochs, settings.freeze_epochs, settings.body_lr_mult)
    told: dict[str, Any] = {}
    if settings.stop_accuracy:
        told = _until(tuner, cycles, rate, settings, pixels[apart], classes[apart])
    else:
        tuner.run(cycles, resume=True)
    network.eval()
    save_weights(job.folder / "weights.safetensors", network)
    write_text(job.folder / "log.csv", csv_text(pd.DataFrame(tuner.log)))
    if job.fold != FULL:
        write_frame(job.folder / "oof.parquet", predict_rows(network, table, pixels, split.held_out))
    return told | {
        "lr": rate, "lr_reason": curve.reason if curve else "as asked", "network": _plain(network),
        "upsampled_images": len(rows), "kept_apart_images": len(apart), "epochs": tuner.epoch,
        "seconds_an_epoch": float(np.median([row["seconds"] for row in tuner.log])),
        "images_per_s": float(np.median([row["images_per_s"] for row in tuner.log])), "log": tuner.log,
    }  # fmt: skip


def _plain(network: BaselineNet) -> dict[str, Any]:
    from lumbar.config import to_dict

    return to_dict(network.config)


def _keep_apart(
    table: pd.DataFrame, rows: NDArray[np.int64], classes: NDArray[np.int8], settings: Settings, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to learn from, and rows of other studies that say when to stop (none unless that is asked).

    They come from the training folds: a stop that looked at the held-out fold would flatter its score.
    """
    studies = np.unique(table["study_id"].to_numpy()[rows])
    if not settings.stop_accuracy or len(studies) < 2 * _KEPT_APART:
        return rows, rows[:0]
    of_study = dict(zip(table["study_id"].to_numpy()[rows], classes[rows], strict=True))
    strata = np.array([of_study[study] for study in studies])
    is_even = np.bincount(strata, minlength=3)[np.unique(strata)].min() >= 2
    learn, _ = train_test_split(
        studies, test_size=1 / _KEPT_APART, random_state=seed, stratify=strata if is_even else None
    )
    is_learnt = np.isin(table["study_id"].to_numpy()[rows], learn)
    if len(np.unique(classes[rows[is_learnt]])) < len(np.unique(classes[rows])):
        return rows, rows[:0]  # a class so rare that it would be lost: nothing is kept apart
    return rows[is_learnt], rows[~is_learnt]


def _until(
    tuner: Tuner,
    cycles: list[Phase],
    rate: float,
    settings: Settings,
    images: NDArray[np.uint8],
    classes: NDArray[np.int8],
) -> dict[str, Any]:
    """Train until the accuracy on the images kept apart; without any, the usual number of epochs."""
    if not len(classes):
        tuner.run(cycles)
        return {"stop": "no studies could be kept apart to measure the accuracy: trained the usual epochs"}

    def accuracy() -> float:
        tuner.network.eval()
        return float((slice_logits(tuner.network, np.asarray(images)).argmax(axis=1) == classes).mean())

    found, added = train_until(
        tuner, cycles, accuracy, settings.stop_accuracy, lambda k: more(rate, settings.body_lr_mult, k),
        settings.max_epochs - settings.epochs,
    )  # fmt: skip
    is_reached = "reached" if found >= settings.stop_accuracy else "not reached"
    line = f"accuracy {found:.3f} on {len(classes)} images kept apart: {settings.stop_accuracy:g} {is_reached}"
    return {"stop": f"{line} after {added} more epochs", "stop_accuracy": found}


def _rate(job: Job, tuner: Tuner) -> tuple[float, Curve | None]:
    """The asked-for rate, or the finder's: on the layers that learn first, and on this fit's own training images."""
    settings = job.settings
    if settings.base_lr:
        return settings.base_lr, None
    freeze(tuner.groups, body=settings.pretrained and settings.freeze_epochs > 0)
    mult = 10.0 if settings.pretrained else settings.body_lr_mult
    optimizer = make_optimizer(tuner.groups, [1 / mult, 1 / mult**0.5, 1.0], settings.weight_decay)
    tuner.network.train()
    torch.manual_seed(tuner.seed)
    n = len(tuner.steps)

    def loss(step: int) -> torch.Tensor:
        return tuner.loss(_FINDER_EPOCH + step // n, step % n)

    curve = find_rate(tuner.network, optimizer, loss, settings.finder_steps)
    frame = pd.DataFrame({"rate": curve.rates, "loss": curve.losses})
    write_text(job.folder / "finder.csv", csv_text(frame))
    return curve.suggestion, curve


def predict_rows(
    network: BaselineNet, table: pd.DataFrame, pixels: NDArray[np.uint8], rows: NDArray[np.int64]
) -> pd.DataFrame:
    """Logits of some images beside what names them."""
    frame = table.iloc[rows][["study_id", "series_id", "instance_number", "image_path"]].reset_index(drop=True)
    frame[LOGITS] = slice_logits(network, np.ascontiguousarray(pixels[rows]))
    return frame


def start_worker(n_threads: int) -> None:
    """A process of a pool: its share of the cores; it ends with the one that started it."""
    end_with_parent()
    os.environ["OMP_NUM_THREADS"] = str(n_threads)
    torch.set_num_threads(n_threads)
