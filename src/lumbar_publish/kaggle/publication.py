"""What the steps of a publication share: what is sealed, the client, and what earlier runs noted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lumbar.competitions.contract import Competition
from lumbar.errors import LumbarError
from lumbar_publish.files import write_text
from lumbar_publish.kaggle.client import Client
from lumbar_publish.kaggle.store import Store, store_of
from lumbar_publish.names import DatasetId, Layout
from lumbar_publish.sealing.seal import Sealed, read_json

AGAIN = "then run this again"


def require_owner(dataset: DatasetId) -> None:
    """Refuse a dataset whose owner is still the placeholder.

    Raises:
        LumbarError: nobody has said yet whose dataset it is.
    """
    if dataset.is_placeholder:
        raise LumbarError(f"{dataset}: whose dataset? Name your Kaggle account with --owner NAME or KAGGLE_USERNAME")


@dataclass
class Publication:
    """One publication.

    Args:
        layout: the repository.
        sealed: what is to be published.
        notes: version notes and submission message.
        log: receives every line.
        runs_notebook: False saves the notebook on Kaggle without running it.
        target: where the bundle goes, ``dataset`` or ``model``.

    Raises:
        LumbarError: nobody has said yet whose dataset it is.
    """

    layout: Layout
    sealed: Sealed
    notes: str
    log: Callable[[str], None] = print
    runs_notebook: bool = True
    target: str = "dataset"
    client: Client = field(init=False)
    store: Store = field(init=False)

    def __post_init__(self) -> None:
        require_owner(self.sealed.dataset)
        self.client = Client(self.log)
        self.store = store_of(self.target, self.client, self.sealed.dataset)

    @property
    def bundle(self) -> str:
        """The bundle's place on Kaggle, for the eye: ``dataset owner/slug``."""
        return f"{self.store.kind} {self.store.name}"

    @property
    def competition(self) -> Competition:
        """What is submitted to."""
        return self.sealed.competition

    @property
    def kernel(self) -> str:
        """The notebook's ``owner/slug``."""
        return self.sealed.dataset.kernel

    @property
    def folder(self) -> Path:
        """Notes and downloads of this manifest hash."""
        return self.layout.root / "dist" / "publish" / self.sealed.manifest_hash[:12]

    @property
    def output(self) -> Path:
        """Where the notebook's output and log are fetched to."""
        return self.folder / "output"

    @property
    def mark(self) -> str:
        """The text that identifies this publication in logs and submission messages."""
        return f"manifest {self.sealed.manifest_hash[:12]}"

    def noted(self, name: str) -> Any:
        """What an earlier run noted under ``name``; None when there is nothing."""
        path = self.folder / "notes.json"
        return read_json(path).get(name) if path.is_file() else None

    def note(self, **values: Any) -> None:
        """Note versions and progress, on disk at once; never a secret."""
        path = self.folder / "notes.json"
        notes = read_json(path) if path.is_file() else {}
        write_text(path, json.dumps(notes | values, indent=1, sort_keys=True) + "\n")
