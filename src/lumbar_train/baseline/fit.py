"""One fit, of one column's network on one fold: split, upsample, find the rate, train, predict what was held out."""

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
from lumbar.config import to_dict
from lumbar.io.tables import csv_text
from lumbar.labels import COLUMNS, SEVERITIES
from lumbar.models.baseline import BaselineNet
from lumbar_train.baseline.balance import Split, check_images, split_images, upsample
from lumbar_train.baseline.finder import Curve, find_rate
from lumbar_train.baseline.network import freeze, make_network, make_optimizer
from lumbar_train.baseline.settings import Settings
from lumbar_train.baseline.tune import Phase, Samples, Tuner, extra_epoch, phases, train_until
from lumbar_train.data.folds import FULL
from lumbar_train.engine.checkpoint import save_weights
from lumbar_train.engine.distributed import pick_device
from lumbar_train.files import read_object, write_text
from lumbar_train.outputs.store import write_frame

LOGITS = ["logit_normal_mild", "logit_moderate", "logit_severe"]
_KEPT_APART = 5  # one training study in five is kept apart to decide when to stop, if that is asked for
_FINDER_EPOCH = 10_000  # an epoch that no fit reaches, so that the range test has batches and augmentation of its own


@dataclass(frozen=True)
class Job:
    """A fit to be done, in a form that can be sent to a process.

    Attributes:
        column: label column.
        fold: the fold held out, FULL for none.
        settings: of the run.
        folder: of this fit.
        work: folder of the images.
        studies: of the cohort.
        classes: of each study in this column, -1 without label.
        held_out: studies of the fold.
        device: to train on.
    """

    column: str
    fold: int
    settings: Settings
    folder: Path
    work: Path
    studies: tuple[int, ...]
    classes: tuple[int, ...]
    held_out: frozenset[int]
    device: str = "auto"

    @property
    def identity(self) -> str:
        """Hash of settings, labels, folds and images; a finished fit is kept only if it is the same."""
        images = json.loads((self.work / "images.json").read_text("utf-8"))["key"]
        settings = asdict(self.settings)
        if settings["amp"] == "auto":  # fits made before the option existed have no such entry, and are kept
            del settings["amp"]
        content = [settings, self.column, self.fold, self.studies, self.classes, sorted(self.held_out)]
        return hashlib.sha256(json.dumps([content, images]).encode()).hexdigest()


def finished(job: Job) -> dict[str, Any] | None:
    """The result of a fit if it is finished and has the same settings, studies and images; else None."""
    result = read_object(job.folder / "fit.json")
    return result if result.get("identity") == job.identity else None


def run_fit(job: Job) -> dict[str, Any]:
    """Do a fit unless it is finished; returns the content of ``fit.json``, which is written last.

    An interrupted fit continues from its last saved epoch and ends with the same weights. If all training images are of
    one class, nothing can be learnt: the status is then ``constant`` with the reason, and the column's prior is used.

    Raises:
        LeakError: an image, a study or a copy of an image is on both sides of the split.
        TrainingError: the loss is not finite, or the disk is full.
    """
    done = finished(job)
    if done is not None:
        return done
    _remove_outdated(job)
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
        labels = f"one class ({SEVERITIES[present[0]]})" if len(present) else "no label"
        result |= {"status": "constant", "reason": f"{job.column}, {fold_title(job.fold)}: found {labels} among "
                   f"{len(split.train)} training images, expected two or more; its constant stands in"}  # fmt: skip
    else:
        result |= _fit(job, table, classes, split)
    result["seconds"] = time.monotonic() - started
    write_text(job.folder / "fit.json", json.dumps(result) + "\n")
    return result


def fold_title(fold: int) -> str:
    """``fold 0``, or ``the fit on all data``."""
    return "the fit on all data" if fold == FULL else f"fold {fold}"


def _remove_outdated(job: Job) -> None:
    """Remove the files of earlier fits; a checkpoint stays if it has the same identity."""
    started = job.folder / "started.json"
    is_same = read_object(started).get("identity") == job.identity
    for name in ("fit.json", "weights.safetensors", "oof.parquet", "log.csv", "finder.csv"):
        (job.folder / name).unlink(missing_ok=True)
    if not is_same:
        (job.folder / "checkpoint.pt").unlink(missing_ok=True)
        write_text(started, json.dumps({"identity": job.identity}))


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
    stop: dict[str, Any] = {}
    if settings.stop_accuracy:
        stop = _train_to_accuracy(tuner, cycles, rate, settings, pixels[apart], classes[apart])
    else:
        tuner.run(cycles, resume=True)
    network.eval()
    save_weights(job.folder / "weights.safetensors", network)
    write_text(job.folder / "log.csv", csv_text(pd.DataFrame(tuner.log)))
    if job.fold != FULL:
        write_frame(job.folder / "oof.parquet", predict_rows(network, table, pixels, split.held_out))
    return stop | {
        "lr": rate, "lr_reason": curve.reason if curve else "as asked", "network": to_dict(network.config),
        "upsampled_images": len(rows), "kept_apart_images": len(apart), "epochs": tuner.epoch,
        "seconds_an_epoch": float(np.median([row["seconds"] for row in tuner.log])),
        "images_per_s": float(np.median([row["images_per_s"] for row in tuner.log])), "log": tuner.log,
    }  # fmt: skip


def _keep_apart(
    table: pd.DataFrame, rows: NDArray[np.int64], classes: NDArray[np.int8], settings: Settings, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to learn from, and rows of other studies that decide when to stop (none unless that is asked for).

    Both come from the training folds: to stop by the held-out fold would make its score too good.
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
        return rows, rows[:0]  # a class would be lost from training: keep nothing apart
    return rows[is_learnt], rows[~is_learnt]


def _train_to_accuracy(
    tuner: Tuner,
    cycles: list[Phase],
    rate: float,
    settings: Settings,
    images: NDArray[np.uint8],
    classes: NDArray[np.int8],
) -> dict[str, Any]:
    """Train until the accuracy is reached on the images kept apart; the usual epochs if there are no such images."""
    if not len(classes):
        tuner.run(cycles)
        return {"stop": "no studies could be kept apart to measure the accuracy: trained the usual epochs"}

    def accuracy() -> float:
        tuner.network.eval()
        return float((slice_logits(tuner.network, np.asarray(images)).argmax(axis=1) == classes).mean())

    reached, added = train_until(
        tuner, cycles, accuracy, settings.stop_accuracy, lambda k: extra_epoch(rate, settings.body_lr_mult, k),
        settings.max_epochs - settings.epochs,
    )  # fmt: skip
    outcome = "reached" if reached >= settings.stop_accuracy else "not reached"
    line = f"accuracy {reached:.3f} on {len(classes)} images kept apart: {settings.stop_accuracy:g} {outcome}"
    return {"stop": f"{line} after {added} more epochs", "stop_accuracy": reached}


def _rate(job: Job, tuner: Tuner) -> tuple[float, Curve | None]:
    """The rate that was asked for, or the finder's: for the layers that learn first, on this fit's training images."""
    settings = job.settings
    if settings.base_lr:
        return settings.base_lr, None
    freeze(tuner.groups, body=settings.pretrained and settings.freeze_epochs > 0)
    mult = 10.0 if settings.pretrained else settings.body_lr_mult
    optimizer = make_optimizer(tuner.groups, [1 / mult, 1 / mult**0.5, 1.0], settings.weight_decay)
    tuner.network.train()
    torch.manual_seed(tuner.seed)
    n = len(tuner.batches)

    def loss(step: int) -> torch.Tensor:
        return tuner.loss(_FINDER_EPOCH + step // n, step % n)

    curve = find_rate(tuner.network, optimizer, loss, settings.finder_steps)
    frame = pd.DataFrame({"rate": curve.rates, "loss": curve.losses})
    write_text(job.folder / "finder.csv", csv_text(frame))
    return curve.suggestion, curve


def predict_rows(
    network: BaselineNet, table: pd.DataFrame, pixels: NDArray[np.uint8], rows: NDArray[np.int64]
) -> pd.DataFrame:
    """Logits of some images, with study, series, instance number and path."""
    frame = table.iloc[rows][["study_id", "series_id", "instance_number", "image_path"]].reset_index(drop=True)
    frame[LOGITS] = slice_logits(network, np.ascontiguousarray(pixels[rows]))
    return frame


def start_worker(n_threads: int) -> None:
    """Initialise a process of the pool: it uses its share of the cores."""
    os.environ["OMP_NUM_THREADS"] = str(n_threads)
    torch.set_num_threads(n_threads)
