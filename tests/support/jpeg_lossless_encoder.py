"""JPEG Lossless codestreams (ITU-T T.81 annex H) from arrays, slow and obvious: what library encoders do not write.

All predictors, point transform, restart intervals, 2 to 16 bits, one scan for all components or one each, tables with
codes up to 16 bits.
"""

import struct

import numpy as np

# Code lengths of categories 0 to 16: one that suits noise, and one whose codes are all as long as can be
SHORT_CODES = {
    5: 2,
    6: 2,
    4: 3,
    7: 3,
    3: 4,
    2: 5,
    8: 6,
    1: 7,
    0: 8,
    9: 9,
    10: 10,
    11: 11,
    12: 12,
    13: 13,
    14: 14,
    15: 15,
    16: 16,
}
LONG_CODES = {category: 16 if category > 3 else 4 + 3 * category for category in range(17)}


def segment(marker, body):
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def huffman(lengths, number=0):
    """DHT segment and {category: (code, length)} of a table given by its code lengths."""
    order = sorted(lengths, key=lambda category: (lengths[category], category))
    counts = [sum(length == size for length in lengths.values()) for size in range(1, 17)]
    codes, code, last = {}, 0, 0
    for category in order:
        code <<= lengths[category] - last
        last = lengths[category]
        codes[category] = (code, last)
        code += 1
    return segment(0xC4, bytes([number, *counts, *order])), codes


def predictions(plane, predictor, first, restart_rows):
    """The prediction of each sample (T.81 H.1.2.1), from the plane itself."""
    rows, columns = plane.shape
    samples = plane.astype(int)
    out = np.zeros_like(samples)
    for row in range(rows):
        is_first = row % restart_rows == 0
        for column in range(columns):
            if column == 0:
                out[row, column] = first if is_first else samples[row - 1, 0]
                continue
            left = samples[row, column - 1]
            if is_first:
                out[row, column] = left
                continue
            above, corner = samples[row - 1, column], samples[row - 1, column - 1]
            out[row, column] = {
                1: left,
                2: above,
                3: corner,
                4: left + above - corner,
                5: left + ((above - corner) >> 1),
                6: above + ((left - corner) >> 1),
                7: (left + above) >> 1,
            }[predictor]
    return out


def difference_bits(difference, codes):
    """Code and magnitude of one difference (T.81 H.1.2.2) as a string of bits."""
    value = (int(difference) + 32768) % 65536 - 32768
    category = abs(value).bit_length()  # 16 for 32768, which has no further bits
    code, length = codes[category]
    bits = format(code, f"0{length}b")
    if 0 < category < 16:
        bits += format(value if value > 0 else value + (1 << category) - 1, f"0{category}b")
    return bits


def stuff(bits):
    """Bits to bytes: ones as padding, a zero behind each FF."""
    bits += "1" * (-len(bits) % 8)
    raw = int(bits or "0", 2).to_bytes(len(bits) // 8, "big")
    return raw.replace(b"\xff", b"\xff\0")


def encode(
    pixels, *, bits=12, predictor=1, shift=0, restart_rows=0, lengths=None, interleaved=True, identifiers=(1, 2, 3)
):
    """A codestream of ``(rows, columns[, 3])``."""
    samples = pixels.reshape(*pixels.shape[:2], -1).astype(int) >> shift
    rows, columns, n = samples.shape
    table, codes = huffman(lengths or SHORT_CODES)
    frame = struct.pack(">BHHB", bits, rows, columns, n) + b"".join(bytes([identifiers[i], 0x11, 0]) for i in range(n))
    out = b"\xff\xd8" + segment(0xC3, frame) + table
    if restart_rows:
        out += segment(0xDD, struct.pack(">H", restart_rows * columns))
    for scan in [list(range(n))] if interleaved else [[i] for i in range(n)]:
        head = bytes([len(scan)]) + b"".join(bytes([identifiers[i], 0]) for i in scan) + bytes([predictor, 0, shift])
        out += segment(0xDA, head)
        per = restart_rows or rows
        planes = [samples[..., i] for i in scan]
        first = 1 << (bits - shift - 1)
        differences = [plane - predictions(plane, predictor, first, per) for plane in planes]
        for start in range(0, rows, per):
            if start:
                out += bytes([0xFF, 0xD0 + (start // per - 1) % 8])
            part = np.stack([each[start : start + per] for each in differences], axis=-1)
            out += stuff("".join(difference_bits(value, codes) for value in part.ravel()))
    return out + b"\xff\xd9"
