"""RLE Lossless (PS3.5 annex G.3 to G.5), one byte at a time."""

import struct

import numpy as np


def unpack(segment, size):
    """``size`` bytes of one segment, or ``None`` where it holds fewer."""
    out = bytearray()
    at = 0
    while at + 1 < len(segment) and len(out) < size:
        control = segment[at]
        if control < 128:
            out += segment[at + 1 : at + 2 + control]
            at += 2 + control
        elif control > 128:
            out += segment[at + 1 : at + 2] * (257 - control)
            at += 2
        else:
            at += 1
    return bytes(out[:size]) if len(out) >= size else None


def decode(frame, shape, dtype):
    """Pixels of ``shape`` in ``dtype``, or ``None`` where the frame does not hold them."""
    dtype = np.dtype(dtype)
    n_pixels = shape[0] * shape[1]
    n_samples = shape[2] if len(shape) == 3 else 1
    if len(frame) < 64:
        return None
    count, *offsets = struct.unpack("<16I", frame[:64])
    if count != n_samples * dtype.itemsize:
        return None
    ends = [*offsets[:count], len(frame)]
    values = np.zeros((n_samples, n_pixels), dtype=np.uint64)
    for segment in range(count):
        if ends[segment] < 64:
            return None
        plane = unpack(frame[ends[segment] : ends[segment + 1]], n_pixels)
        if plane is None:
            return None
        sample = segment // dtype.itemsize
        values[sample] = values[sample] * np.uint64(256) + np.frombuffer(plane, np.uint8)
    pixels = values.T.reshape(shape).astype(f"u{dtype.itemsize}")
    return pixels.view(dtype)
