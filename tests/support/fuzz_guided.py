"""Coverage-guided fuzzing of the DICOM decoder, to be left running.

    python tests/support/fuzz_guided.py --minutes 60 --folder /tmp/fuzz

The kernels run as plain Python here (``NUMBA_DISABLE_JIT=1``), so that every step from one line to the next can be
seen. A mutated file that takes a step no file took before is kept as a seed for further mutation. ``FOLDER/queue``
holds the kept files and is read again at the next start; ``FOLDER/failures`` holds files that gave neither pixels of
the right shape nor a refusal, each with its verdict; ``FOLDER/case.dcm`` is the file at hand, should a library crash.
Exit code 1 where anything failed.
"""

import argparse
import hashlib
import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path

os.environ["NUMBA_DISABLE_JIT"] = "1"
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "kernel"), str(ROOT / "tests" / "support"), str(ROOT / "tests")]

import fuzz_corpus  # noqa: E402
import fuzz_mutate  # noqa: E402

DECODER = str(ROOT / "kernel" / "lumbar" / "dicom")
CASE_SECONDS = 30
fuzz_corpus.SHAPE = (7, 10)  # plain Python is slow


class Steps:
    """Collects (function, line, line) steps of the decoder's code while it is entered as a context."""

    def __init__(self):
        self.seen = set()

    def __enter__(self):
        self.new = set()
        sys.settrace(self._call)
        return self

    def __exit__(self, *_):
        sys.settrace(None)
        self.new -= self.seen
        self.seen |= self.new

    def _call(self, frame, _event, _argument):
        if not frame.f_code.co_filename.startswith(DECODER):
            return None
        code, add, last = frame.f_code, self.new.add, 0

        def step(frame, event, _argument):
            nonlocal last
            if event == "line":
                add((code, last, frame.f_lineno))
                last = frame.f_lineno
            return step

        return step


def decode(content, target, steps):
    """Return the verdict on ``content`` and the number of new steps it took."""
    target.write_bytes(content)
    signal.alarm(CASE_SECONDS)
    try:
        with steps:
            verdict = fuzz_mutate.verdict(target)
    except TimeoutError:
        verdict = f"not done after {CASE_SECONDS} s"
    finally:
        signal.alarm(0)
    return verdict, len(steps.new)


def out_of_time(*_):
    raise TimeoutError


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("/tmp/lumbar-fuzz"))
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=time.time_ns())
    options = parser.parse_args()
    queue_folder, failures = options.folder / "queue", options.folder / "failures"
    for folder in (queue_folder, failures):
        folder.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    fuzz_mutate.without_plugins()
    signal.signal(signal.SIGALRM, out_of_time)

    rng, steps, target = random.Random(options.seed), Steps(), options.folder / "case.dcm"
    queue = [*fuzz_corpus.seeds().values(), *(path.read_bytes() for path in sorted(queue_folder.iterdir()))]
    for content in queue:
        decode(content, target, steps)
    started = shown = time.monotonic()
    n_cases = n_failed = 0
    while time.monotonic() - started < 60 * options.minutes:
        # Newer files are likelier to lead on to new ground
        content = fuzz_mutate.mutate(queue[max(rng.randrange(len(queue)), rng.randrange(len(queue)))], queue, rng)
        verdict, n_new = decode(content, target, steps)
        n_cases += 1
        name = hashlib.sha256(content).hexdigest()[:16]
        if verdict not in ("pixels", "refused"):
            n_failed += 1
            (failures / f"{name}.dcm").write_bytes(content)
            (failures / f"{name}.txt").write_text(verdict + "\n")
        elif n_new:
            queue.append(content)
            (queue_folder / name).write_bytes(content)
        if time.monotonic() - shown > 10:
            shown = time.monotonic()
            print(f"{n_cases} cases, {len(steps.seen)} steps, {len(queue)} seeds, {n_failed} failures", flush=True)
    print(f"{n_cases} cases, {len(steps.seen)} steps, {len(queue)} seeds, {n_failed} failures in {failures}")
    return 1 if n_failed else 0


if __name__ == "__main__":
    sys.exit(main())
