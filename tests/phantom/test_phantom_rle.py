"""The RLE encoder against pydicom's decoder and against hand-written bytes."""

import numpy as np
import pytest
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders import RLELosslessDecoder

from lumbar_phantom import rle


def _decode(image: np.ndarray, signed: bool = False) -> np.ndarray:
    pixels, _ = RLELosslessDecoder.as_array(
        encapsulate([rle.encode(image)]),
        rows=image.shape[0],
        columns=image.shape[1],
        bits_allocated=8 * image.itemsize,
        bits_stored=8 * image.itemsize,
        samples_per_pixel=1,
        number_of_frames=1,
        photometric_interpretation="MONOCHROME2",
        pixel_representation=int(signed),
        pixel_keyword="PixelData",
    )
    return pixels


def test_header_and_packets_are_as_annex_g_draws_them():
    image = np.array([[7, 7, 7, 7, 1, 2]], np.uint8)
    frame = rle.encode(image)
    assert frame[:8] == bytes([1, 0, 0, 0, 64, 0, 0, 0])
    assert frame[64:] == bytes([257 - 4, 7, 1, 1, 2]) + b"\0"  # a run, two literals, a byte that makes it even


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
@pytest.mark.parametrize("shape", [(1, 1), (3, 127), (5, 128), (4, 129), (7, 300), (64, 65)])
def test_noise_runs_and_mixtures_survive(dtype, shape):
    rng = np.random.default_rng(1)
    for image in (
        rng.integers(0, 4096 if np.dtype(dtype).itemsize > 1 else 256, shape).astype(dtype),
        np.full(shape, 3, dtype),
        (rng.random(shape) < 0.2).astype(dtype) * 77,
        np.arange(np.prod(shape)).reshape(shape).astype(dtype),
    ):
        np.testing.assert_array_equal(_decode(image, np.issubdtype(dtype, np.signedinteger)), image)


def test_worst_case_fits_the_buffer():
    image = np.tile(np.array([1, 1, 2, 3, 3, 4], np.uint16) * 257, (40, 50))
    np.testing.assert_array_equal(_decode(image), image)
