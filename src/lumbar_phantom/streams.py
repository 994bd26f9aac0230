"""Random streams: every draw depends on (seed, study index, purpose) and on nothing else."""

from __future__ import annotations

import zlib

import numpy as np


def stream(seed: int, index: int, *purpose: str | int) -> np.random.Generator:
    """A generator for one purpose of one study; it does not depend on other purposes, other studies or workers."""
    words = [zlib.crc32(str(word).encode()) for word in purpose]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, index, *words])))
