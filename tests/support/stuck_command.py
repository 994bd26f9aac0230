"""A program whose work never ends: its main thread waits in foreign code, where Python answers no signal.

Run as a script: the program, then its arguments. Once the work has begun, the file ``BEGUN`` holds the number of a
process that was started by it.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import subprocess
import sys
from pathlib import Path

from lumbar.io import signals

# Program → module, the function that does its work, and that which runs it as a process.
PROGRAMS = {
    "lumbar": ("lumbar.__main__", "run_inspect", "script"),
    "lumbar_phantom": ("lumbar_phantom.__main__", "_run", "script"),
    "lumbar_train": ("lumbar_train.__main__", "run_train", "script"),
    "build_dataset": ("lumbar_publish.cli", "_run", "main"),
    "dry-run": ("lumbar_publish.rehearsal.dry_run", "_rehearse_whole", "main"),
    "train": ("lumbar_publish.training.command", "_train", "main"),
}


def hang(*_arguments: object) -> int:
    child = subprocess.Popen(["sleep", "900"], start_new_session=True)
    library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)  # zeros are PTHREAD_MUTEX_INITIALIZER
    while True:
        with contextlib.suppress(KeyboardInterrupt):  # of a signal that comes before the thread waits
            Path(os.environ["BEGUN"]).write_text(str(child.pid))
            for _ in range(2):  # a thread that locks a normal mutex twice waits for ever (pthread_mutex_lock(3p))
                library.pthread_mutex_lock(mutex)


if __name__ == "__main__":
    signals.GRACE_S = 0.2
    module_name, work, entry = PROGRAMS[sys.argv.pop(1)]
    module = importlib.import_module(module_name)
    setattr(module, work, hang)
    if module_name == "lumbar_publish.cli":
        signals.run_as_process(lambda: module.main(None, None))
    elif entry == "main":
        signals.run_as_process(module.main)
    else:
        module.script()
