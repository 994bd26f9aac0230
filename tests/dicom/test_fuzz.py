"""Mutated files of all transfer syntaxes, decoded in child processes that the parent kills when they stand still.

A compiled loop ignores signals until it returns, so a hang can only be seen from outside. The same cases come in every
run; ``LUMBAR_FUZZ_SEED`` and ``LUMBAR_FUZZ_CASES`` choose others.
"""

import collections
import hashlib
import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fuzz_corpus
import fuzz_mutate
from fuzz_worker import WARMING
from lumbar import dicom
from lumbar.dicom import read_slice

pytestmark = pytest.mark.usefixtures("unmeasured_children")

N_CASES = int(os.environ.get("LUMBAR_FUZZ_CASES", "24000"))
SEED = int(os.environ.get("LUMBAR_FUZZ_SEED", "0"))
START_SECONDS = 600  # to compile one syntax
CASE_SECONDS = 5  # of the processor, since others may be at work on this machine
STILL_SECONDS = 60  # on the clock, for a child that waits for something
SUPPORT = Path(__file__).parents[1] / "support"


def processor_seconds(pid):
    """Time that the processor has spent on a child; 0 where the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run_children(folder, last, seed, **environment):
    """Decode cases 0 .. last; return (counts, what went wrong). A child that dies or hangs is followed by another."""
    report, progress, wrong, first = folder / "report", folder / "progress", [], 0
    report.touch()
    while first < last and len(wrong) < 20:
        progress.write_bytes(bytes(8))
        with (folder / "stderr").open("wb") as errors:
            command = [sys.executable, "-X", "faulthandler", str(SUPPORT / "fuzz_worker.py"), str(folder)]
            path = os.pathsep.join([str(SUPPORT), *sys.path])
            child = subprocess.Popen(
                [*command, str(first), str(last), str(seed)],
                stderr=errors,
                stdout=errors,
                env={**os.environ, "PYTHONPATH": path, "OPENCV_LOG_LEVEL": "SILENT", **environment},
            )
            at, since, spent = 0, time.monotonic(), 0.0
            while child.poll() is None:
                time.sleep(0.05)
                now_at = int.from_bytes(progress.read_bytes(), "little")
                is_case = 0 < at < WARMING
                if now_at != at:
                    at, since, spent = now_at, time.monotonic(), processor_seconds(child.pid)
                elif time.monotonic() - since > (STILL_SECONDS if is_case else START_SECONDS) or (
                    is_case and processor_seconds(child.pid) - spent > CASE_SECONDS
                ):
                    child.kill()
                    child.wait()
                    break
        at = int.from_bytes(progress.read_bytes(), "little")
        if child.returncode == 0:
            first = last
        else:
            tail = (folder / "stderr").read_text(errors="replace")[-1500:]
            wrong.append({"case": at - 1, "verdict": f"child ended with {child.returncode}: {tail}"})
            first = at if 0 < at < WARMING else last
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    counts = collections.Counter()
    for line in lines:
        counts.update(line.get("counts", {}))
    return counts, wrong + [line for line in lines if "case" in line]


@pytest.fixture(scope="module")
def corpus():
    return fuzz_corpus.seeds()


def test_seeds_themselves_decode(corpus, tmp_path):
    refused = []
    for name, content in corpus.items():
        path = tmp_path / "seed.dcm"
        path.write_bytes(content)
        if fuzz_mutate.verdict(path) != "pixels":
            refused.append(name)
    assert refused in ([], ["htj2k"])  # which needs a plugin of pydicom's


def test_a_file_that_claims_more_than_it_holds_is_refused_at_once(corpus, tmp_path):
    path = tmp_path / "huge.dcm"
    for name, content in corpus.items():
        huge = bytearray(content)
        order = "big" if name.endswith("big") else "little"
        for tag in (0x0010, 0x0011):
            at = huge.find(b"".join(value.to_bytes(2, order) for value in (0x0028, tag)))
            if at >= 0:
                huge[at + 8 : at + 10] = b"\xff\xff"
        path.write_bytes(bytes(huge))
        started = time.process_time()  # others may be at work on this machine
        verdict = fuzz_mutate.verdict(path)
        assert verdict == "refused" or name == "deflated", name
        assert time.process_time() - started < 5, name


@pytest.mark.slow
def test_mutated_files_give_pixels_or_refusals_and_never_a_crash_or_a_hang(corpus, tmp_path):
    (tmp_path / "seeds.pickle").write_bytes(pickle.dumps(corpus))
    counts, wrong = run_children(tmp_path, N_CASES, SEED)
    assert wrong == []
    assert sum(counts.values()) == N_CASES
    for i, name in enumerate(corpus):
        assert counts[f"{i}/refused"] > 0, name
        assert counts[f"{i}/pixels"] > 0 or name == "htj2k", name


@pytest.mark.slow
def test_no_index_leaves_its_array_in_a_run_with_bounds_checking(corpus, tmp_path):
    # Numba would take unchecked code from the usual cache; one for each state of the sources, since numba looks only at
    # the file of the function itself, not at what that calls.
    sources = sorted(Path(dicom.__file__).parent.rglob("*.py"))
    state = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    cache = SUPPORT.parents[1] / ".numba_cache" / f"bounds-{state}"
    (tmp_path / "seeds.pickle").write_bytes(pickle.dumps(corpus))
    _, wrong = run_children(tmp_path, N_CASES // 6, SEED + 1, NUMBA_BOUNDSCHECK="1", NUMBA_CACHE_DIR=str(cache))
    assert wrong == []


def test_a_hang_a_crash_and_too_much_memory_are_seen(tmp_path, monkeypatch, corpus):
    worker = (SUPPORT / "fuzz_worker.py").read_text()
    broken = worker.replace(
        "            result, n_bytes = fuzz_mutate.peak_memory(fuzz_mutate.verdict, target)\n",
        "            if index == 1: import os; os.abort()\n"
        "            while index == 3: pass\n"
        "            if index == 4: import time; time.sleep(100)\n"
        "            if index == 5: fuzz_mutate.MAX_CASE_BYTES = 1 << 26\n"
        "            _, n_bytes = fuzz_mutate.peak_memory(lambda: b'x' * (1 << 27 if index == 5 else 1))\n"
        "            result = 'pixels'\n",
    ).replace("            fuzz_mutate.verdict(target)\n        fuzz", "            assert target\n        fuzz")
    assert broken != worker
    (tmp_path / "fuzz_worker.py").write_text(broken)
    monkeypatch.setattr(sys.modules[__name__], "SUPPORT", tmp_path)
    monkeypatch.setattr(sys.modules[__name__], "CASE_SECONDS", 1)
    monkeypatch.setattr(sys.modules[__name__], "STILL_SECONDS", 4)
    monkeypatch.syspath_prepend(str(Path(fuzz_mutate.__file__).parent))
    (tmp_path / "seeds.pickle").write_bytes(pickle.dumps({"one": corpus["explicit"]}))
    counts, wrong = run_children(tmp_path, 7, 0)
    assert [case["case"] for case in wrong] == [1, 3, 4, 5]
    assert "-6" in wrong[0]["verdict"]
    assert "-9" in wrong[1]["verdict"]
    assert "-9" in wrong[2]["verdict"]
    assert "bytes of memory" in wrong[3]["verdict"]
    assert counts == {"0/pixels": 1, "wrong": 1}


def test_a_seed_is_read_like_any_file(corpus, tmp_path):
    path = tmp_path / "seed.dcm"
    path.write_bytes(corpus["jpeg-ls plain"])
    assert read_slice(path).pixels.shape == fuzz_corpus.SHAPE
