"""Run a notebook from top to bottom, inside whatever isolation this process was started in: ``python -m`` only."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from lumbar.io.text import printable
from lumbar_publish.files import write_text
from lumbar_publish.rehearsal import sandbox

_STARTUP_TIMEOUT_S = 120


class _Echo(NotebookClient):
    """A client that also shows what the cells print while they print it."""

    def process_message(self, msg: dict[str, Any], cell: Any, cell_index: int) -> Any:
        if msg["msg_type"] == "stream":
            sys.stderr.write(msg["content"]["text"])
            sys.stderr.flush()
        return super().process_message(msg, cell, cell_index)


def execute(plan: dict[str, Any]) -> int:
    """Carry out a plan (see ``dry_run``); 1 when a cell failed. The executed notebook is written either way."""
    if plan["namespace"]:
        sandbox.loopback_up()
    for source, target in plan["mounts"]:
        sandbox.mount_read_only(Path(source), Path(target))
    if plan["kaggle_like"]:
        sandbox.limit_like_kaggle()
    page = nbformat.reads(Path(plan["notebook"]).read_text(encoding="utf-8"), as_version=4)
    client = _Echo(
        page,
        timeout=plan["timeout_s"],
        startup_timeout=_STARTUP_TIMEOUT_S,
        kernel_name="python3",
        extra_arguments=["--log-level=40"],  # its warning about unencrypted loopback is no news here
        resources={"metadata": {"path": plan["working"]}},
    )
    try:
        client.execute(env=plan["environment"])
    except CellExecutionError as error:
        print(f"the notebook stopped: {printable(error.ename)}: {printable(error.evalue, 2000)}", file=sys.stderr)
        return 1
    finally:
        write_text(Path(plan["executed"]), nbformat.writes(page))
    return 0


if __name__ == "__main__":
    sys.exit(execute(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
