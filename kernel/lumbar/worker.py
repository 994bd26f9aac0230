"""A worker: one device, one study at a time, told what to do over a pipe.

The same loop runs in a thread of the calling process (CPU) or in a process of its own (one a GPU). It opens the next
study's files in the background while the networks work, and the first one's while the weights load, so that the
decoders are compiled by then. One study's failure ends here: it becomes an ``Outcome`` without probabilities.

    parent → worker   ("read", study_id) · ("predict", study_id, effort, is_pictured) · ("stop",)
    worker → parent   ("ready", device, seconds) or ("refused", error) once, then ("done", Outcome) for each study
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lumbar.budget import Effort
from lumbar.chain import Chain, Outcome, Probs
from lumbar.errors import CohortError, LumbarError
from lumbar.manifest import Manifest
from lumbar.submission import normalise
from lumbar.text import PublicText, guard_log, one_line, study_text

log = guard_log()


@dataclass(frozen=True)
class Setup:
    """All that a worker needs, in a form that can be sent to a process."""

    root: Path
    split: str
    descriptions: pd.DataFrame
    manifest: Manifest
    prior: Probs  # (25, 3)
    chain: Chain
    device: str  # "cpu", "cuda:0", …
    n_threads: int | None  # of the CPU; None leaves the libraries' own choice
    first_study: int | None  # read while the weights load


class _Reading:
    """One study being read in a daemon thread: a read that hangs must not keep the process from ending."""

    def __init__(self, setup: Setup, study_id: int) -> None:
        self._setup, self._study_id = setup, study_id
        self._study: Any = None
        self._error: Exception | None = None
        self.seconds = 0.0
        self.public = PublicText()
        self._thread = threading.Thread(target=self._read, name=f"lumbar-read-{study_id}", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        started = time.perf_counter()
        setup = self._setup
        try:
            self._study = setup.chain.read(setup.root, setup.split, self._study_id, setup.descriptions, setup.n_threads)
        except Exception as error:
            self._error = error
        # Only now, and here: a folder that cannot be listed in time is no reason to wait anywhere else.
        self.public = study_text(setup.root, setup.split, self._study_id, [setup.manifest.folder])
        self.seconds = time.perf_counter() - started

    def result(self) -> Any:
        """The study; raises what reading it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._study


def serve(connection: Connection, setup: Setup) -> None:
    """Run a worker until it is told to stop or its parent is gone."""
    try:
        _serve(connection, setup)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent is gone: nobody wants the rest
    finally:
        connection.close()


def serve_process(connection: Connection, setup: Setup) -> None:
    """``serve`` in a process of its own."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    serve(connection, setup)


def _serve(connection: Connection, setup: Setup) -> None:
    readings: dict[int, _Reading] = {}
    if setup.first_study is not None:
        readings[setup.first_study] = _Reading(setup, setup.first_study)
    started = time.perf_counter()
    try:
        _limit_threads(setup.n_threads)
        networks, device = _load(setup)
    except Exception as error:
        connection.send(("refused", error if isinstance(error, LumbarError) else LumbarError(one_line(error))))
        return
    connection.send(("ready", device, time.perf_counter() - started))
    while True:
        message = connection.recv()
        if message[0] == "stop":
            return
        study_id = message[1]
        if study_id not in readings:
            readings[study_id] = _Reading(setup, study_id)
        if message[0] == "predict":
            outcome = attempt(setup, networks, readings.pop(study_id), study_id, message[2], message[3])
            connection.send(("done", outcome))


def _limit_threads(n_threads: int | None) -> None:
    if n_threads is None:
        return
    import torch

    torch.set_num_threads(n_threads)


def _load(setup: Setup) -> tuple[Any, str]:
    """Networks and the device they ended on: a GPU that this torch cannot use is replaced by the CPU."""
    try:
        return setup.chain.load(setup.manifest, setup.device), setup.device
    except LumbarError:
        raise
    except Exception as error:
        if setup.device == "cpu":
            raise
        log.warning("%s cannot be used (%s): going on with the CPU", setup.device, one_line(error))
        return setup.chain.load(setup.manifest, "cpu"), "cpu"


def attempt(
    setup: Setup, networks: Any, reading: _Reading, study_id: int, effort: Effort, is_pictured: bool
) -> Outcome:
    """Predict one study. Whatever it raises is contained: one line, and its prior stays."""
    outcome = Outcome(study_id)
    started = time.perf_counter()
    try:
        study = reading.result()
        outcome.problems.extend(study.problems)
        if not any(study.series.values()):
            raise CohortError(f"study {study_id}: found no readable series, expected at least one")
        result = setup.chain.predict(study, networks, setup.prior, effort)
        outcome.problems.extend(line for line in result.problems if line not in outcome.problems)
        outcome.seconds.update(result.seconds)
        outcome.sagittal_points = [point.record() for point in result.localisation.sagittal_points]
        outcome.axial_levels = [level.record() for level in result.localisation.axial_levels]
        outcome.probs = normalise(np.asarray(result.probs))
    except Exception as error:
        outcome.failure = one_line(error, reading.public)
        outcome.is_device_lost = setup.device != "cpu" and "CUDA error" in str(error)
    else:
        outcome.seconds["draw"] = _draw(setup, study, result, outcome) if is_pictured else 0.0
    outcome.problems = [reading.public(line) for line in outcome.problems]
    outcome.seconds["read"] = reading.seconds
    outcome.seconds["study"] = time.perf_counter() - started
    return outcome


def _draw(setup: Setup, study: Any, result: Any, outcome: Outcome) -> float:
    started = time.perf_counter()
    try:
        outcome.pictures = setup.chain.draw(study, result)
    except Exception as error:  # a picture is never worth a prediction
        outcome.problems.append(f"study {study.study_id}: no pictures ({one_line(error)})")
    return time.perf_counter() - started


class Worker:
    """The parent's end: a thread or process, its pipe, and the studies that it was given.

    Args:
        setup: what it works on.
        is_process: a process of its own, which can be ended and replaced; else a daemon thread.
    """

    def __init__(self, setup: Setup, is_process: bool) -> None:
        self.setup, self.is_process = setup, is_process
        self.device = ""
        self.is_ready = False
        self.is_busy = False  # the first assigned study is in the networks
        self.started_s = 0.0  # the run's clock when it became busy
        self.effort = Effort.FULL
        self.assigned: list[int] = [] if setup.first_study is None else [setup.first_study]
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        name = f"lumbar-{setup.device}"
        if is_process:
            self._process = context.Process(target=serve_process, args=(theirs, setup), name=name, daemon=True)
            self._process.start()
            theirs.close()  # or its end would never be noticed
        else:
            self._thread = threading.Thread(target=serve, args=(theirs, setup), name=name, daemon=True)
            self._thread.start()

    def send(self, *message: Any) -> None:
        """Tell the worker; that it is gone is found out by receiving."""
        try:
            self.connection.send(message)
        except (BrokenPipeError, ConnectionResetError, OSError):
            log.debug("%s: gone", self.setup.device)

    def ending(self) -> str:
        """How a worker that is gone ended, in words."""
        if not self.is_process:
            return "its thread ended"
        self._process.join(timeout=5.0)
        return f"its process ended with exit code {self._process.exitcode}"

    def stop(self, patience_s: float = 5.0) -> None:
        """End it: one that is idle may end by itself, one at work is ended (a process) or left behind (a thread)."""
        self.send("stop")
        patience = patience_s if self.is_ready and not self.is_busy else 0.0
        if not self.is_process:
            self._thread.join(timeout=patience)
        else:
            self._process.join(timeout=patience)
            if self._process.is_alive():
                self._process.kill()
                self._process.join(timeout=patience_s)
        self.connection.close()


def cpu_threads(n_workers: int) -> int | None:
    """Threads for each of several workers on the CPU; None for one worker, which may have them all."""
    if n_workers <= 1:
        return None
    try:
        n_cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        n_cores = os.cpu_count() or 1
    return max(1, n_cores // n_workers)
