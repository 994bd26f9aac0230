"""The worker's side of a run: it has one device, predicts its studies, and gets its orders through a pipe.

The same loop runs in a process of its own (normally: a crash then costs one study) or in a thread of the calling
process. It reads the next study's files in the background while the networks work, and the first one's while the
weights load, so that the decoders are compiled by then. On a CPU one study is predicted after the other; on a GPU
``Chain.gpu_studies`` at the same time, each in a thread, so that crops and heat of one do not hold up the networks of
another. Where a study fails, the result is an ``Outcome`` without probabilities.

    run → worker   a ``Setup`` once ("booted" asked for it), then
                   ("read", study_id) · ("predict", study_id, effort, drawn) · ("stop",)
    worker → run   ("booted",), then ("ready", device, seconds), ("refused", error) or ("unsendable", reason);
                   ("opened", study_id, seconds) and ("done", Outcome) for each study; ("log", level, text) at any time
"""

from __future__ import annotations

import contextlib
import gc
import logging
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lumbar.bundle.manifest import Manifest
from lumbar.bundle.shared_memory import SharedWeights
from lumbar.chains.contract import Chain, Drawn, Outcome, Picture, Probs
from lumbar.errors import CohortError, LumbarError
from lumbar.io.fingerprint import study_fingerprint
from lumbar.io.tables import files_of
from lumbar.io.text import PublicText, one_line, printable_log, study_text
from lumbar.output.picture_files import draw_files
from lumbar.output.submission import normalise
from lumbar.workers.effort import Effort, Level
from lumbar.workers.libraries import import_libraries
from lumbar.workers.own_process import end_with_parent, keep_memory

log = printable_log()


@dataclass(frozen=True)
class Setup:
    """What a worker needs, in a form that can be sent to a process."""

    root: Path
    split: str
    descriptions: pd.DataFrame
    manifest: Manifest
    prior: Probs  # (rows, values) of the manifest's competition
    chain: Chain
    device: str  # "cpu", "cuda:0", …
    n_threads: int | None  # CPU threads; None leaves the choice to the libraries
    first_study: int | str | None  # to be read while the weights load


class Channel:
    """The worker's end of the pipe. Readings send from their own threads, so sending is protected by a lock."""

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

    def has_message(self) -> bool:
        """Whether ``receive`` would return at once."""
        return self._connection.poll()

    def close(self) -> None:
        """Close the pipe."""
        self._connection.close()


class _Reading:
    """One study that is read in a daemon thread, so that a reading that hangs does not stop the worker.

    Args:
        setup: the chain and its inputs.
        study_id: its id.
        channel: is told when the study was read.
        has_libraries: set once the worker's libraries are imported (``import_libraries``); the chain waits for it.
    """

    def __init__(
        self,
        setup: Setup,
        study_id: int | str,
        channel: Channel | _Nobody,
        has_libraries: threading.Event | None = None,
    ) -> None:
        self._setup, self._study_id, self._channel = setup, study_id, channel
        self._has_libraries = has_libraries
        self._study: Any = None
        self._error: Exception | None = None
        self.started, self.seconds = time.perf_counter(), 0.0
        self.public = PublicText()
        self.files = ""  # fingerprint of what is read
        self._thread = threading.Thread(target=self._read, name=f"lumbar-read-{study_id}", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        setup = self._setup
        competition = setup.manifest.competition
        images = competition.path(competition.images, setup.split)
        files = files_of(setup.descriptions, self._study_id)
        try:
            # Before the reading: a file that changes meanwhile then differs from its fingerprint.
            self.files = study_fingerprint(setup.root, images, self._study_id, files)
            if self._has_libraries is not None:
                self._has_libraries.wait()
            self._study = setup.chain.read(setup.root, setup.split, self._study_id, setup.descriptions, setup.n_threads)
        except Exception as error:
            self._error = error
        except BaseException as error:  # SystemExit in a thread must not end the worker
            self._error = LumbarError(one_line(error))
        try:
            # This lists the study's folder, which may hang as reading did: so it is done in this thread.
            self.public = study_text(setup.root, setup.split, self._study_id, [setup.manifest.folder], images, files)
        finally:
            self.seconds = time.perf_counter() - self.started
            with contextlib.suppress(OSError):  # the run has ended
                self._channel.send("opened", self._study_id, self.seconds)

    def result(self) -> Any:
        """Wait for the study, and return it; raises what reading it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._study


def serve(connection: Connection, setup: Setup) -> None:
    """Run a worker in the calling thread until it is told to stop or the run has ended."""
    _serve(Channel(connection), setup)


def serve_process(connection: Connection, modules: Sequence[str] = (), memory: int | None = None) -> None:
    """Run a worker in this process: it asks for its setup, and sends its log to the run.

    Args:
        connection: the pipe.
        modules: what it imports until it gets its setup, and then while its first study is read.
        memory: the open file of the weights that the run's workers have together.
    """
    end_with_parent()
    keep_memory()
    channel = Channel(connection)
    logging.getLogger().addHandler(_Forward(channel))
    log.setLevel(logging.INFO)
    try:
        channel.send("booted")
        with contextlib.suppress(Exception):  # it comes again, and is told, when the networks are loaded
            import_libraries(modules, is_wanted=lambda: not channel.has_message())
        try:
            setup = channel.receive()
        except (EOFError, OSError):
            return
        except Exception as error:  # a chain whose functions cannot be imported here
            channel.send("unsendable", one_line(error))
            return
    except OSError:
        return
    _serve(channel, setup, modules, memory)


class _Forward(logging.Handler):
    """Sends log lines to the run, which knows where to show them: a notebook, a terminal with a bar, a file."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
            if record.exc_info and record.exc_info[1] is not None:
                text += f" ({one_line(record.exc_info[1])})"
            self._channel.send("log", record.levelno, text)
        except Exception:  # as in logging's own handlers: a line that cannot be written must not stop the work
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Do nothing, since the pipe that failed is the only way to report it."""


def _serve(channel: Channel, setup: Setup, modules: Sequence[str] = (), memory: int | None = None) -> None:
    try:
        _work(channel, setup, modules, memory)
    except (EOFError, OSError):
        pass  # the run has ended
    finally:
        channel.close()


def _work(channel: Channel, setup: Setup, modules: Sequence[str], memory: int | None) -> None:
    readings: dict[int | str, _Reading] = {}
    has_libraries = threading.Event()
    if setup.first_study is not None:
        readings[setup.first_study] = _Reading(setup, setup.first_study, channel, has_libraries)
    started = time.perf_counter()
    try:
        try:
            import_libraries(modules)
        finally:
            has_libraries.set()
        if memory is not None:
            share_weights(setup.manifest, memory)
        _limit_threads(setup.n_threads)
        networks, device = _load(setup)
        _limit_threads(setup.n_threads)  # of libraries that were loaded just now
        if modules:
            gc.freeze()  # libraries and networks stay: no collection of garbage need look at them again
    except Exception as error:
        is_ours = type(error).__module__ == LumbarError.__module__  # classes of others may not survive pickling
        channel.send("refused", error if is_ours else LumbarError(one_line(error)))
        return
    pace = _Pace(time.perf_counter())
    channel.send("ready", device, time.perf_counter() - started)
    while True:
        message = channel.receive()
        if message[0] == "stop":
            return
        study_id = message[1]
        if message[0] == "read":
            readings[study_id] = _Reading(setup, study_id, channel)
        else:
            task = setup, networks, readings.pop(study_id), study_id, message[2], message[3], pace
            if setup.chain.studies_at_once(device) == 1:
                _answer(channel, attempt(*task))
            else:
                name = f"lumbar-predict-{study_id}"
                threading.Thread(target=_attempt_beside, args=(channel, *task), name=name, daemon=True).start()


class _Pace:
    """Tells how many seconds each study adds to the run, also where several are in the networks at the same time.

    Args:
        since: when the networks were ready (``time.perf_counter``).
    """

    def __init__(self, since: float) -> None:
        self._since, self._lock = since, threading.Lock()

    def ended(self, started: float) -> float:
        """The seconds since a study's reading started, or since the study before ended, whichever is less."""
        with self._lock:
            before, self._since = max(self._since, started), time.perf_counter()
            return self._since - before


def _attempt_beside(
    channel: Channel, setup: Setup, networks: Any, reading: _Reading, study_id: int | str, *rest: Any
) -> None:
    """``attempt`` in a thread of its own: while one study is in the networks, another is cut and decoded."""
    try:
        outcome = attempt(setup, networks, reading, study_id, *rest)
    except BaseException as error:  # SystemExit would end this thread without an answer
        outcome = Outcome(study_id, failure=one_line(error))
    with contextlib.suppress(OSError):  # the run has ended
        _answer(channel, outcome)


def _answer(channel: Channel, outcome: Outcome) -> None:
    try:
        channel.send("done", outcome)
    except OSError:
        raise
    except Exception as error:  # the chain returned something that cannot be pickled
        channel.send("done", Outcome(outcome.study_id, failure=one_line(error)))


def share_weights(manifest: Manifest, memory: int) -> None:
    """Let the networks of this process have their weights in the memory that all workers have together."""
    from lumbar.bundle.weights import use_shared

    use_shared(SharedWeights(manifest, memory))


def _limit_threads(n_threads: int | None) -> None:
    """Set the threads of the libraries that are loaded: a chain without networks has no torch."""
    if n_threads is not None and "torch" in sys.modules:
        import torch

        torch.set_num_threads(n_threads)
    if n_threads is not None and "cv2" in sys.modules:
        import cv2

        cv2.setNumThreads(n_threads)


def _load(setup: Setup) -> tuple[Any, str]:
    """Load the networks; returns them and their device. A GPU that this torch cannot use is replaced by the CPU."""
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
    study_id: int | str,
    effort: Level,
    drawn: Drawn,
    pace: _Pace,
) -> Outcome:
    """Predict one study. Whatever is raised becomes one line in the outcome, and the study's prior stays.

    Args:
        setup: the chain and its inputs.
        networks: as the chain loaded them.
        reading: the study, which may still be read.
        study_id: its id.
        effort: how much work it gets.
        drawn: which pictures are drawn.
        pace: tells the seconds that the study adds to the run, so waiting for its reading counts.
    """
    outcome = Outcome(study_id)
    try:
        study = reading.result()
        outcome.problems.extend(study.problems)
        series = getattr(study, "series", None)  # another competition's study may have none
        if series is not None and not any(series.values()):
            raise CohortError(f"study {study_id}: found no readable series, expected at least one")
        result = setup.chain.predict(study, networks, setup.prior, effort)
        outcome.problems.extend(line for line in result.problems if line not in outcome.problems)
        outcome.seconds.update(result.seconds)
        outcome.sagittal_points = [point.record() for point in result.localisation.sagittal_points]
        outcome.axial_levels = [level.record() for level in result.localisation.axial_levels]
        numbering = getattr(result.localisation, "numbering", None)
        outcome.numbering = None if numbering is None else numbering.record()
        outcome.not_seen = list(getattr(result.localisation, "filled", ()))
        for level, points_mm in zip(outcome.axial_levels, getattr(result, "axial_mm", ()), strict=False):
            level.update(points_mm)
        outcome.probs = normalise(np.asarray(result.probs), setup.manifest.competition)
    except Exception as error:
        outcome.failure = one_line(error, reading.public)
        outcome.is_device_lost = setup.device != "cpu" and "CUDA error" in str(error)
    else:
        outcome.seconds["draw"] = _draw(setup, study, result, outcome, drawn)
    outcome.problems = [reading.public(line) for line in outcome.problems]
    outcome.files = reading.files
    outcome.seconds["read"] = reading.seconds
    outcome.seconds["study"] = pace.ended(reading.started)
    return outcome


class _Nobody:
    """The channel of a worker that nobody listens to."""

    def send(self, *_message: Any) -> None:
        """Do nothing."""


def predict_alone(setup: Setup, networks: Any, study_id: int | str, idle_since: float) -> Outcome:
    """Read and predict one study in the calling process, at full effort and without pictures."""
    reading = _Reading(setup, study_id, _Nobody())
    return attempt(setup, networks, reading, study_id, Effort.FULL, Drawn.NOTHING, _Pace(idle_since))


def _draw(setup: Setup, study: Any, result: Any, outcome: Outcome, drawn: Drawn) -> float:
    """Draw what is wanted of a study into its outcome; returns the seconds that it took."""
    started = time.perf_counter()
    chain = setup.chain
    jobs: list[tuple[Drawn, list[Picture], Callable[[], list[Picture]]]] = [
        (Drawn.PAGE, outcome.pictures, lambda: chain.draw(study, result)),
        (Drawn.FILES, outcome.picture_files, lambda: draw_files(chain, study, result)),
    ]
    for kind, pictures, draw in jobs:
        try:
            pictures.extend(draw() if kind in drawn else ())
        except Exception as error:  # the prediction counts, even without pictures
            line = f"study {outcome.study_id}: no pictures ({one_line(error)})"
            if line not in outcome.problems:
                outcome.problems.append(line)
    return time.perf_counter() - started if drawn else 0.0
