"""Child process of the fuzz test: decodes cases one after the other and says which one it is at.

``python fuzz_worker.py FOLDER FIRST LAST SEED``: FOLDER holds ``seeds.pickle`` and receives ``progress`` (the case at
hand, eight bytes), ``case.dcm`` (its file) and lines in ``report`` (JSON: case and verdict).
"""

import collections
import json
import mmap
import pickle
import sys
import warnings
from pathlib import Path

import fuzz_mutate

WARMING = 1 << 32  # progress from here on: seeds and first cases are being decoded without a limit of time


def main(folder, first, last, seed):
    warnings.simplefilter("ignore")
    fuzz_mutate.without_plugins()
    files = list(pickle.loads((folder / "seeds.pickle").read_bytes()).values())
    target = folder / "case.dcm"
    counts = collections.Counter()
    with (folder / "progress").open("r+b") as handle, (folder / "report").open("a") as report:
        progress = mmap.mmap(handle.fileno(), 8)
        # Compile everything before the clock runs. Some kernels only run on a file that was changed: the first cases,
        # which come once more below.
        warming = [*files, *(fuzz_mutate.case(files, index, seed) for index in range(2 * len(files)))]
        for i, content in enumerate(warming):
            progress[:] = (WARMING + i).to_bytes(8, "little")
            target.write_bytes(content)
            fuzz_mutate.verdict(target)
        fuzz_mutate.limit_memory(fuzz_mutate.MAX_CASE_BYTES)
        for index in range(first, last):
            target.write_bytes(fuzz_mutate.case(files, index, seed))
            progress[:] = (index + 1).to_bytes(8, "little")
            result, n_bytes = fuzz_mutate.peak_memory(fuzz_mutate.verdict, target)
            if n_bytes > fuzz_mutate.MAX_CASE_BYTES:
                result = f"{n_bytes} bytes of memory"
            counts[f"{index % len(files)}/{result}" if result in ("pixels", "refused") else "wrong"] += 1
            if result not in ("pixels", "refused"):
                print(json.dumps({"case": index, "verdict": result}), file=report, flush=True)
        print(json.dumps({"counts": counts}), file=report, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:5]))
