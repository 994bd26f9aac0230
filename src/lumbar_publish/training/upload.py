"""The dataset with the training code: uploaded and seen to be served as bundles are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lumbar_publish.kaggle import step_dataset
from lumbar_publish.kaggle.client import Client
from lumbar_publish.kaggle.publication import Publication, require_owner
from lumbar_publish.kaggle.remote_dataset import DatasetStore
from lumbar_publish.training.plan import MANIFEST


@dataclass
class CodePublication(Publication):
    """A publication of training code: its manifest has another name, its notes lie in the run's folder."""

    place: Path = Path()

    def __post_init__(self) -> None:
        require_owner(self.sealed.dataset)
        self.client = Client(self.log)
        self.store = DatasetStore(self.client, self.sealed.dataset, MANIFEST)

    @property
    def folder(self) -> Path:
        """Notes and what is uploaded, of this manifest hash."""
        return self.place / self.sealed.manifest_hash[:12]


def upload(publication: CodePublication) -> None:
    """Upload the code unless Kaggle serves this very code; end when it does.

    Raises:
        KaggleError: it did not get there; says what to do.
    """
    step_dataset.run(publication)
