"""What Kaggle has of a notebook: whether a version is the one that would be pushed, and its number."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lumbar_publish.kaggle.client import Client, KaggleError
from lumbar_publish.sealing.seal import read_json

_MOST_VERSIONS = 1 << 14  # more than anybody has


def pushed_version(client: Client, kernel: str, notebook: Path, metadata: Path, after: int) -> int | None:
    """Number of Kaggle's newest version where it is this very notebook with these sources, else None.

    A push that was accepted just before its process was killed, or one made by hand, needs no second run. The client
    shows no version's number, but it pulls versions by number (``owner/slug/N``, sent as the label "vN"; what is not
    there is answered with 404): the newest is the last that is there. Should Kaggle answer for a number that cannot be,
    numbers tell nothing, and the answer is None.

    Args:
        client: to ask.
        kernel: ``owner/slug``.
        notebook: what would be pushed.
        metadata: its ``kernel-metadata.json``.
        after: versions up to this one are not meant (their run failed).

    Raises:
        KaggleError: no answer.
    """
    wanted = _Version(_cells(notebook.read_text(encoding="utf-8")), _sources(read_json(metadata)), _machine(metadata))
    if wanted.cells is None or not wanted.is_same(_pull(client, kernel)):
        return None
    if _pull(client, f"{kernel}/{after + 2 * _MOST_VERSIONS}") is not None:
        return None
    newest = _newest(client, kernel, after)
    # asked again by its number: another push may have come between
    return newest if newest > after and wanted.is_same(_pull(client, f"{kernel}/{newest}")) else None


@dataclass(frozen=True)
class _Version:
    """What makes a notebook version: cells, sources and switches, and the accelerator."""

    cells: list[tuple[str, str]] | None
    sources: tuple[Any, ...]
    machine: str

    def is_same(self, other: _Version | None) -> bool:
        """Whether a version of Kaggle's is this one; an accelerator that Kaggle does not name is taken on trust."""
        if other is None or (other.cells, other.sources) != (self.cells, self.sources):
            return False
        return not other.machine or not self.machine or other.machine.lower() == self.machine.lower()


def _newest(client: Client, kernel: str, after: int) -> int:
    """The last version from ``after`` on that can be pulled: first in doubling steps, then by halves."""
    low, step = after, 1
    while step < _MOST_VERSIONS and _pull(client, f"{kernel}/{after + step}") is not None:
        low, step = after + step, 2 * step
    high = after + step  # not there
    while high - low > 1:
        middle = (low + high) // 2
        if _pull(client, f"{kernel}/{middle}") is None:
            high = middle
        else:
            low = middle
    return low


def _pull(client: Client, reference: str) -> _Version | None:
    """A version; None when Kaggle has none such, or refuses to show it."""
    with tempfile.TemporaryDirectory(prefix="lumbar-remote-") as scratch:
        try:
            client.ask("kernels", "pull", reference, "-p", scratch, "-m")
        except KaggleError as error:
            if error.trouble.is_no_answer:
                raise
            return None
        pulled = read_json(Path(scratch) / "kernel-metadata.json")
        code = Path(scratch) / str(pulled.get("code_file"))
        cells = _cells(code.read_text(encoding="utf-8")) if code.is_file() else None
        return _Version(cells, _sources(pulled), _machine(Path(scratch) / "kernel-metadata.json"))


def _cells(text: str) -> list[tuple[str, str]] | None:
    """Kind and source of each cell; outputs and identifiers, which Kaggle changes, do not count."""
    try:
        notebook = json.loads(text)
    except ValueError:
        return None
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if not isinstance(cells, list):
        return None
    return [(str(cell.get("cell_type")), "".join(cell.get("source") or [])) for cell in cells if isinstance(cell, dict)]


def _sources(metadata: dict[str, Any]) -> tuple[Any, ...]:
    """What a run depends on besides the cells."""
    names = ("dataset_sources", "competition_sources", "kernel_sources", "model_sources")
    # Kaggle writes a framework as PyTorch or pyTorch (Kaggle/kaggle-cli #549)
    lists = (sorted(str(source).lower() for source in metadata.get(name) or []) for name in names)
    flags = (bool(metadata.get(name)) for name in ("enable_gpu", "enable_tpu", "enable_internet", "is_private"))
    return (*map(tuple, lists), *flags)


def _machine(metadata: Path) -> str:
    """The accelerator that a metadata file names; of a version of Kaggle's, the one that its last run had."""
    return str(read_json(metadata).get("machine_shape") or "")
