"""Where a bundle is published to: what the steps ask of a dataset and of a model alike."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Protocol

from lumbar_publish.kaggle.client import Client, Reply
from lumbar_publish.kaggle.remote_dataset import DatasetStore
from lumbar_publish.kaggle.remote_model import ModelStore
from lumbar_publish.names import DatasetId

TARGETS = ("dataset", "model")


class Store(Protocol):
    """A place on Kaggle that keeps versions of a bundle.

    ``taken`` is what the client says (a pattern) when Kaggle makes a version; ``unpacking_limit_s`` is for how long a
    version that is shown may still hold archives.
    """

    kind: ClassVar[str]
    taken: ClassVar[str]
    unpacking_limit_s: ClassVar[float]

    @property
    def name(self) -> str:
        """What Kaggle calls it."""

    @property
    def page(self) -> str:
        """Its page on Kaggle."""

    def prepare(self, sealed: Path) -> None:
        """Write beside the sealed bundle what the client needs to know."""

    def is_ready(self) -> bool | None:
        """Whether it can take a version; None when there is none yet, or none that we may see."""

    def newest_hash(self) -> str | None:
        """Manifest hash of the newest version that Kaggle serves; None without one."""

    def missing_files(self, sealed: Path) -> list[str]:
        """Files of the sealed folder that Kaggle does not list, and weights that it lists cut short."""

    def version(self) -> int:
        """Number of the newest version that Kaggle serves."""

    def sources(self) -> dict[str, list[str]]:
        """The fields of the notebook's metadata that attach it."""

    def upload(self, exists: bool, notes: str, folder: Path, scratch: Path) -> Reply:
        """Send what lies in ``folder`` as the first version, or the next one where it ``exists``."""

    def complete(self, sealed: Path) -> None:
        """What else belongs to a version that is served."""


def store_of(target: str, client: Client, bundle: DatasetId) -> Store:
    """The place of a target (one of ``TARGETS``)."""
    return ModelStore(client, bundle) if target == "model" else DatasetStore(client, bundle)
