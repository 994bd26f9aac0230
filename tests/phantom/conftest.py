"""What several files of phantom tests share."""

import pytest

from lumbar_phantom import study, volume
from phantom_helpers import BlankPainter


@pytest.fixture
def unpainted(monkeypatch):
    """Everything but the anatomy's volume and its pixels."""
    monkeypatch.setattr(study, "Painter", BlankPainter)
    monkeypatch.setattr(volume, "build", lambda patient, rng: None)
