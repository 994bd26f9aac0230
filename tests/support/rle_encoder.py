"""RLE Lossless frames (PS3.5 annex G) from arrays: 1 and 3 samples, 8 to 32 bits, and runs of every kind."""

import struct

import numpy as np


def pack(plane, *, noise=None):
    """PackBits of ``plane`` (bytes), by greedy runs; ``noise`` (a generator) cuts them at random, no-ops between."""
    out = bytearray()
    at, size = 0, len(plane)
    while at < size:
        end = at + 1
        while end < size and end - at < 128 and plane[end] == plane[at]:
            end += 1
        if noise is not None and end - at > 1:
            end = at + int(noise.integers(1, end - at + 1))
        if noise is not None and noise.random() < 0.1:
            out.append(128)
        if end - at > 1:
            out += bytes([257 - (end - at), plane[at]])
            at = end
            continue
        stop = at + 1
        longest = 128 if noise is None else int(noise.integers(1, 129))
        while stop < size and stop - at < longest and (stop + 1 >= size or plane[stop] != plane[stop + 1]):
            stop += 1
        out += bytes([stop - at - 1]) + plane[at:stop]
        at = stop
    return bytes(out)


def encode(pixels, *, noise=None, padding=b""):
    """One frame from ``(rows, columns[, samples])``; ``padding`` is put behind each segment."""
    samples = pixels.reshape(*pixels.shape[:2], -1)
    segments = []
    for sample in range(samples.shape[2]):
        plane = np.ascontiguousarray(samples[..., sample])
        octets = plane.astype(plane.dtype.newbyteorder(">")).view(np.uint8).reshape(plane.size, -1)
        segments += [pack(octets[:, byte].tobytes(), noise=noise) for byte in range(octets.shape[1])]
    segments = [segment + padding + b"\0" * ((len(segment) + len(padding)) % 2) for segment in segments]
    return join(segments)


def join(segments):
    """A frame of segments that are packed already."""
    offsets, place = [], 64
    for segment in segments:
        offsets.append(place)
        place += len(segment)
    offsets += [0] * (15 - len(offsets))
    return struct.pack("<16I", len(segments), *offsets) + b"".join(segments)
