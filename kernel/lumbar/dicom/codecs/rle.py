"""RLE Lossless (PS3.5 annex G): byte planes, each packed by PackBits.

::

    frame     number of segments 4 | offset of each segment 4 x 15 | segments
    segment   one byte plane of one sample, most significant byte first, in runs:
              0 ... 127    copy the next n + 1 bytes
              129 ... 255  repeat the next byte 257 - n times
              128          nothing

Real slices have thousands of runs of 2 to 15 bytes in the plane of the high bytes, so the time for each run decides the
speed. A run is written in steps of 16 bytes, as two words, and longer ones in a loop. This may write beyond the end of
a run but never beyond the array: planes have ``PAD`` bytes of margin, and the last bytes of a segment are read by a
plain loop.
"""

from __future__ import annotations

import numpy as np

from lumbar.dicom._jit import inner_kernel, kernel
from lumbar.dicom._scratch import fresh, scratch
from lumbar.dicom.codecs._bits import load_little, store_little
from lumbar.dicom.codecs.native import clear_unused_bits
from lumbar.dicom.header import Header
from lumbar.errors import DicomError

TRANSFER_SYNTAXES: tuple[str, ...] = ("1.2.840.10008.1.2.5",)

PAD = 128  # longest run
UNSUPPORTED = -1
_ONE, _TWO, _EIGHT, _CHUNK = (np.uint64(n) for n in (1, 2, 8, 16))
_HEADER_BYTES, _HALF, _LOW = (np.uint64(n) for n in (64, 32, 0xFFFFFFFF))
_MAX_SEGMENTS = 15
_MAX_EXPANSION = 64  # two bytes are unpacked to at most 128


def decode_frame(data: np.ndarray, header: Header) -> np.ndarray:
    """Decode one frame (``lumbar.dicom.pixels.Codec``)."""
    shape, dtype = header.frame_shape, header.pixel_dtype
    n_pixels = shape[0] * shape[1]
    n_samples = shape[2] if len(shape) == 3 else 1
    n_bytes = dtype.itemsize
    expected = n_samples * n_bytes
    path = header.path
    if header.bits_allocated == 1 or expected > _MAX_SEGMENTS:
        raise DicomError(
            f"{path}: found RLE with BitsAllocated {header.bits_allocated} and {n_samples} samples, expected 8, 16, 32"
        )
    if data.size < 64:
        raise DicomError(f"{path}: found an RLE frame of {data.size} bytes, expected its header of 64")
    if n_pixels * expected > data.size * _MAX_EXPANSION:
        raise DicomError(
            f"{path}: found {data.size} bytes of RLE, expected at least {n_pixels * expected // _MAX_EXPANSION} for "
            f"{shape[0]} x {shape[1]} pixels"
        )
    words = data[:64].view("<u4").tolist() if data.flags.aligned else np.frombuffer(data[:64].tobytes(), "<u4").tolist()
    if words[0] != expected:
        raise DicomError(f"{path}: found {words[0]} RLE segments, expected {expected}")
    ends = np.array([*words[1 : expected + 1], data.size], dtype=np.int64)

    planes = scratch(expected * (n_pixels + PAD)).reshape(expected, n_pixels + PAD)
    code = unpack_planes(data, ends, planes, n_pixels)
    if code:
        segment = -code - 1
        raise DicomError(
            f"{path}: found RLE segment {segment} (bytes {ends[segment]} to {ends[segment + 1]} of {data.size}) ended "
            f"early or outside the frame, expected {n_pixels} bytes from it"
        )
    if expected == 1:
        pixels = planes[0, :n_pixels].copy().view(dtype).reshape(shape)
    elif expected == 2 and n_samples == 1:
        pixels = fresh(shape, dtype, "pixels")
        bits = join_pairs(planes, pixels.reshape(-1).view(np.uint16))
        if dtype.kind == "u" and not bits >> header.stored_bits:
            return pixels
    else:
        pixels = fresh(shape, dtype, "pixels")
        octets = pixels.view(np.uint8).reshape(n_pixels, n_samples, n_bytes)
        for sample in range(n_samples):
            for byte in range(n_bytes):  # planes begin with the most significant byte, memory with the least
                octets[:, sample, n_bytes - 1 - byte] = planes[sample * n_bytes + byte, :n_pixels]
    pixels = clear_unused_bits(pixels, header)
    if n_samples == 1:
        return pixels
    from lumbar.dicom.codecs.colour import to_rgb  # late: slices of a spine have no colour

    return to_rgb(pixels, header, None)


def decode_gray16(data: np.ndarray, header: Header, n_pixels: int, mask: int) -> np.ndarray | None:
    """Decode one frame of 16-bit gray; ``None`` where anything is wrong: ``decode_frame`` then says what it is.

    Args:
        data: (n,) uint8 read-only, the frame's bytes.
        header: gives the sizes and the sign.
        n_pixels: how many; the caller has checked that so many bytes can hold them.
        mask: the bits stored.
    """
    planes = scratch(2 * (n_pixels + PAD)).reshape(2, n_pixels + PAD)
    words = fresh((n_pixels,), np.uint16, "pixels")
    bits = unpack_words(data, planes, words)
    if bits < 0:
        return None
    pixels = words.reshape(header.frame_shape)
    if header.pixel_representation == 1:
        return clear_unused_bits(pixels.view(np.int16), header)
    return clear_unused_bits(pixels, header) if bits & ~mask else pixels


@kernel
def unpack_words(source: np.ndarray, planes: np.ndarray, words: np.ndarray) -> int:
    """Decode a frame of two segments, ``source`` (n,) uint8 read-only, into ``words`` (n,) uint16.

    ``planes`` (2, n + PAD) uint8 is working memory. Returns all bits that are set in any word, or UNSUPPORTED where
    there are not two segments that fill their planes.
    """
    size, n_pixels = np.uint64(source.size), np.uint64(words.size)
    if size < _HEADER_BYTES:
        return UNSUPPORTED
    head, tail = load_little(source, np.uint64(0)), load_little(source, _EIGHT)
    first, second = head >> _HALF, tail & _LOW
    if head & _LOW != _TWO or first < _HEADER_BYTES or second <= first or size <= second:
        return UNSUPPORTED
    if unpack(source, first, second, planes[0], n_pixels) != words.size:
        return UNSUPPORTED
    if unpack(source, second, size, planes[1], n_pixels) != words.size:
        return UNSUPPORTED
    return join_pairs(planes, words)


@kernel
def unpack_planes(source: np.ndarray, ends: np.ndarray, planes: np.ndarray, n_pixels: int) -> int:
    """Unpack every segment into its plane.

    ``source`` (n,) uint8 is read-only; ``ends`` (segments + 1,) int64 says where each segment begins and the last one
    ends; ``planes`` is (segments, n_pixels + PAD) uint8. Returns 0, or ``-1 - segment`` for the first segment that
    does not fill its plane.
    """
    for segment in range(planes.shape[0]):
        start = ends[segment]
        stop = ends[segment + 1]
        if stop > source.size:
            stop = source.size
        if start < 64 or start >= stop:
            return -1 - segment
        if unpack(source, np.uint64(start), np.uint64(stop), planes[segment], np.uint64(n_pixels)) != n_pixels:
            return -1 - segment
    return 0


_REPEAT, _NOTHING, _LAST = np.uint64(257), np.uint64(128), np.uint64(255)
_MARGIN = np.uint64(PAD + 2)
_EVERY_BYTE = np.uint64(0x0101010101010101)


@inner_kernel
def unpack(source: np.ndarray, start: np.uint64, stop: np.uint64, plane: np.ndarray, n_pixels: np.uint64) -> int:
    """Unpack ``source[start:stop]`` into ``plane`` (n_pixels + PAD,); returns how many bytes were filled."""
    position = start
    done = np.uint64(0)
    # Up to here a run of any length lies within the segment, and is copied in chunks of 16 bytes
    limit = stop - _MARGIN if stop > _MARGIN else np.uint64(0)
    while done < n_pixels and position < limit:
        control = np.uint64(source[position])
        # A copy of one byte is treated as that byte repeated once: three of four copies are, so that the processor
        # predicts the branch more often
        if (control + _LAST) & _NOTHING:
            count = (_REPEAT - control) & _LAST
            word = np.uint64(source[position + _ONE]) * _EVERY_BYTE
            step = np.uint64(0)
            while True:
                store_little(plane, done + step, word)
                store_little(plane, done + step + _EIGHT, word)
                step += _CHUNK
                if step >= count:
                    break
            position += _TWO
            done += count
        elif control < _NOTHING:
            position += _ONE
            count = control + _ONE
            step = np.uint64(0)
            while True:
                word = load_little(source, position + step)
                next_word = load_little(source, position + step + _EIGHT)
                store_little(plane, done + step, word)
                store_little(plane, done + step + _EIGHT, next_word)
                step += _CHUNK
                if step >= count:
                    break
            position += count
            done += count
        else:
            position += _ONE
    while done < n_pixels and position + _ONE < stop:
        control = np.uint64(source[position])
        position += _ONE
        if control > _NOTHING:
            count = _REPEAT - control
            for index in range(count):
                plane[done + np.uint64(index)] = source[position]
            position += _ONE
            done += count
        elif control < _NOTHING:
            count = control + _ONE
            if count > stop - position:
                count = stop - position
            for index in range(count):
                plane[done + np.uint64(index)] = source[position + np.uint64(index)]
            position += count
            done += count
    return int(done if done < n_pixels else n_pixels)


@kernel
def join_pairs(planes: np.ndarray, pixels: np.ndarray) -> int:
    """Interleave a high and a low byte plane, ``planes`` (2, >= n) uint8, into ``pixels`` (n,) uint16.

    Returns all bits that are set in any pixel.
    """
    high = planes[0]
    low = planes[1]
    bits = np.uint16(0)
    for index in range(pixels.size):
        word = np.uint16(np.uint16(np.uint16(high[index]) << np.uint16(8)) | np.uint16(low[index]))
        pixels[index] = word
        bits = np.uint16(bits | word)
    return int(bits)


def warm_up() -> None:
    """Compile what slices of 16-bit gray need (or load it from numba's cache)."""
    source = np.zeros(8, np.uint8)
    source.flags.writeable = False
    unpack_words(source, np.zeros((2, 1 + PAD), np.uint8), np.zeros(1, np.uint16))
