"""JPEG Lossless (ITU-T T.81 annexes C, F.2.2 and H), one bit at a time; for well-formed codestreams only."""

import struct

import numpy as np


class Bits:
    """Bits of one restart interval, most significant first; ones behind the end."""

    def __init__(self, raw):
        self.text = "".join(format(byte, "08b") for byte in raw.replace(b"\xff\0", b"\xff"))
        self.place = 0

    def take(self, count):
        bits = self.text[self.place : self.place + count].ljust(count, "1")
        self.place += count
        return int(bits, 2) if count else 0


def read_table(body):
    """{(length, code): category} of one DHT segment, by the procedure of annex C."""
    counts, values = body[1:17], list(body[17:])
    table, code = {}, 0
    for length, count in enumerate(counts, start=1):
        for _ in range(count):
            table[length, code] = values.pop(0)
            code += 1
        code <<= 1
    return table


def read_difference(bits, table):
    code = length = 0
    while (length, code) not in table:
        code, length = code << 1 | bits.take(1), length + 1
    category = table[length, code]
    if category == 16:
        return 32768
    value = bits.take(category)
    return value if category == 0 or value >> (category - 1) else value - (1 << category) + 1


def split_intervals(raw):
    """The entropy-coded bytes up to the next marker that is no restart, cut at restart markers; and their length."""
    parts, start, at = [], 0, 0
    while True:
        at = raw.index(b"\xff", at)
        follower = raw[at + 1]
        if follower == 0:
            at += 2
        elif 0xD0 <= follower <= 0xD7:
            parts.append(raw[start:at])
            start = at = at + 2
        else:
            return [*parts, raw[start:at]], at


def decode(data):
    """Samples, ``(rows, columns, components)`` int."""
    at, table, restart, out = 2, {}, 0, None
    identifiers: list = []
    precision = 0
    while data[at + 1] != 0xD9:
        marker, (length,) = data[at + 1], struct.unpack(">H", data[at + 2 : at + 4])
        body = data[at + 4 : at + 2 + length]
        at += 2 + length
        if marker == 0xC3:
            precision, rows, columns, count = struct.unpack(">BHHB", body[:6])
            identifiers = [body[6 + 3 * i] for i in range(count)]
            out = np.zeros((rows, columns, count), dtype=int)
        elif marker == 0xC4:
            table = read_table(body)
        elif marker == 0xDD:
            restart = struct.unpack(">H", body)[0] // columns
        elif marker == 0xDA:
            parts, used = split_intervals(data[at:])
            at += used
            chosen = [identifiers.index(body[1 + 2 * i]) for i in range(body[0])]
            _decode_scan(out, chosen, parts, table, restart or out.shape[0], body[-3], body[-1], precision)
    return out


def _decode_scan(out, chosen, parts, table, per, predictor, shift, precision):
    rows, columns = out.shape[:2]
    samples = np.zeros((rows, columns, len(chosen)), dtype=int)
    bits = Bits(b"")
    for row in range(rows):
        is_first = row % per == 0
        if is_first:
            bits = Bits(parts[row // per])
        for column in range(columns):
            for i in range(len(chosen)):
                left, above, corner = (
                    samples[row, column - 1, i],
                    samples[row - 1, column, i],
                    samples[row - 1, column - 1, i],
                )
                if column == 0:
                    guess = 1 << (precision - shift - 1) if is_first else above
                elif is_first:
                    guess = left
                else:
                    guess = (
                        left,
                        above,
                        corner,
                        left + above - corner,
                        left + (above - corner) // 2,
                        above + (left - corner) // 2,
                        (left + above) // 2,
                    )[predictor - 1]
                samples[row, column, i] = (guess + read_difference(bits, table)) % 65536
    out[..., chosen] = samples << shift
