"""The working side of a run: one device, one study in its networks at a time, told what to do over a pipe.

The same loop runs in a process of its own (the rule: a crash then costs one study) or in a thread of the calling
process. It opens the next study's files in the background while the networks work, and the first one's while the
weights load, so that the decoders are compiled by then. One study's failure ends here: it becomes an ``Outcome``
without probabilities.

    run → worker   a ``Setup`` once ("booted" asked for it), then
                   ("read", study_id) · ("predict", study_id, effort, is_pictured) · ("stop",)
    worker → run   ("booted",), then ("ready", device, seconds), ("refused", error) or ("unsendable", reason);
                   ("opened", study_id, seconds) and ("done", Outcome) for each study; ("log", level, text) at any time
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lumbar.budget import Effort
from lumbar.bundle.manifest import Manifest
from lumbar.chains.contract import Chain, Outcome, Probs
from lumbar.errors import CohortError, LumbarError
from lumbar.io.text import PublicText, one_line, printable_log, study_text
from lumbar.output.submission import normalise

log = printable_log()

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


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


class Channel:
    """The worker's end of the pipe. Readings report from threads of their own, so that sending takes a lock."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def send(self, *message: Any) -> None:
        """Send one message whole."""
        with self._lock:
            self._connection.send(message)

    def receive(self) -> Any:
        """The next message."""
        return self._connection.recv()

    def close(self) -> None:
        """Say nothing any more."""
        self._connection.close()


class _Reading:
    """One study being read in a daemon thread: a reading that hangs must not keep the worker from going on."""

    def __init__(self, setup: Setup, study_id: int, channel: Channel) -> None:
        self._setup, self._study_id, self._channel = setup, study_id, channel
        self._study: Any = None
        self._error: Exception | None = None
        self.started, self.seconds = time.perf_counter(), 0.0
        self.public = PublicText()
        self._thread = threading.Thread(target=self._read, name=f"lumbar-read-{study_id}", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        setup = self._setup
        try:
            self._study = setup.chain.read(setup.root, setup.split, self._study_id, setup.descriptions, setup.n_threads)
        except Exception as error:
            self._error = error
        except BaseException as error:  # SystemExit: to a thread no reason to end anything but itself
            self._error = LumbarError(one_line(error))
        try:
            # Only now, and here: a folder that cannot be listed in time is no reason to wait anywhere else.
            self.public = study_text(setup.root, setup.split, self._study_id, [setup.manifest.folder])
        finally:
            self.seconds = time.perf_counter() - self.started
            with contextlib.suppress(OSError):  # the run is over
                self._channel.send("opened", self._study_id, self.seconds)

    def result(self) -> Any:
        """The study; raises what reading it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._study


def serve(connection: Connection, setup: Setup) -> None:
    """Run a worker in the calling thread until it is told to stop or the run is gone."""
    _serve(Channel(connection), setup)


def serve_process(connection: Connection) -> None:
    """Run a worker in a process of its own: it asks for its setup, and its log goes to the run's."""
    _end_with_parent()
    channel = Channel(connection)
    logging.getLogger().addHandler(_Forward(channel))
    log.setLevel(logging.INFO)
    try:
        channel.send("booted")
        try:
            setup = channel.receive()
        except (EOFError, OSError):
            return
        except Exception as error:  # a chain whose functions cannot be imported here
            channel.send("unsendable", one_line(error))
            return
    except OSError:
        return
    _serve(channel, setup)


class _Forward(logging.Handler):
    """Sends log lines to the run, which knows where its reader looks: a notebook, a terminal with a bar, a file."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
            if record.exc_info and record.exc_info[1] is not None:
                text += f" ({one_line(record.exc_info[1])})"
            self._channel.send("log", record.levelno, text)
        except Exception:  # as logging does: a line that cannot be written ends nothing
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Nothing: the only place to complain is the pipe that failed."""


def _end_with_parent() -> None:
    """See to it that this process never outlives the run, even one that was killed.

    A thread waits for the parent's end. On Linux the system ends this process too (prctl(2), PR_SET_PDEATHSIG), which
    holds even while a library keeps the interpreter's lock.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def follow() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, name="lumbar-parent", daemon=True).start()
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _serve(channel: Channel, setup: Setup) -> None:
    try:
        _work(channel, setup)
    except (EOFError, OSError):
        pass  # the run is gone: nobody wants the rest
    finally:
        channel.close()


def _work(channel: Channel, setup: Setup) -> None:
    readings: dict[int, _Reading] = {}
    if setup.first_study is not None:
        readings[setup.first_study] = _Reading(setup, setup.first_study, channel)
    started = time.perf_counter()
    try:
        networks, device = _load(setup)
        _limit_threads(setup.n_threads)
    except Exception as error:
        is_ours = type(error).__module__ == LumbarError.__module__  # another's class may not arrive as it was sent
        channel.send("refused", error if is_ours else LumbarError(one_line(error)))
        return
    idle_since = time.perf_counter()
    channel.send("ready", device, idle_since - started)
    while True:
        message = channel.receive()
        if message[0] == "stop":
            return
        study_id = message[1]
        if message[0] == "read":
            readings[study_id] = _Reading(setup, study_id, channel)
        else:
            outcome = attempt(setup, networks, readings.pop(study_id), study_id, message[2], message[3], idle_since)
            _answer(channel, outcome)
            idle_since = time.perf_counter()


def _answer(channel: Channel, outcome: Outcome) -> None:
    try:
        channel.send("done", outcome)
    except OSError:
        raise
    except Exception as error:  # a chain that returned what cannot be sent
        channel.send("done", Outcome(outcome.study_id, failure=one_line(error)))


def _limit_threads(n_threads: int | None) -> None:
    if n_threads is not None and "torch" in sys.modules:  # a chain that loaded no networks needs none of it
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
    setup: Setup,
    networks: Any,
    reading: _Reading,
    study_id: int,
    effort: Effort,
    is_pictured: bool,
    idle_since: float,
) -> Outcome:
    """Predict one study. Whatever it raises is contained: one line, and its prior stays.

    Args:
        idle_since: when the networks had nothing to do (``time.perf_counter``): the study's seconds are the wall time
            that it adds, so that waiting for its reading counts.
    """
    outcome = Outcome(study_id)
    started = max(idle_since, reading.started)
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
