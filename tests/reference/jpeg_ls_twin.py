"""JPEG-LS in plain Python, both ways, written from ITU-T T.87: slow and obvious.

One walk over the image serves encoder and decoder: ``Writer`` and ``Reader`` have the same two methods, which take the
value to be written (or ``None``) and return the value that stands in the stream. The encoder covers what library
encoders do not offer: LSE parameters, restart intervals, the three interleave modes, any precision and NEAR.
"""

from dataclasses import dataclass

import numpy as np

ORDERS = [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4 + [4, 4, 5, 5, 6, 6, 7, 7, 8, 9, 10, 11, 12, 13, 14, 15]


class Writer:
    """Bits with stuffing: after a byte 0xFF the next one starts with a zero bit (A.1)."""

    def __init__(self):
        self.out = bytearray()
        self.bits = []

    def raw(self, value, count):
        for i in reversed(range(count)):
            self.bits.append(value >> i & 1)
            width = 7 if self.out and self.out[-1] == 0xFF else 8
            if len(self.bits) == width:
                self.out.append(int("".join(map(str, self.bits)), 2))
                self.bits = []
        return value

    def golomb(self, value, k, limit, qbpp):
        if value >> k < limit - qbpp - 1:
            self.raw(1, (value >> k) + 1)
            self.raw(value & ((1 << k) - 1), k)
        else:
            self.raw(1, limit - qbpp)
            self.raw(value - 1, qbpp)
        return value

    def finish(self):
        while self.bits:
            self.raw(0, 1)
        if self.out and self.out[-1] == 0xFF:
            self.out.append(0)
        return bytes(self.out)


class Reader:
    """Bits of ``data`` from ``offset`` up to the next marker."""

    def __init__(self, data, offset):
        text, width = [], 8
        while offset < len(data):
            if data[offset] == 0xFF and offset + 1 < len(data) and data[offset + 1] >= 0x80:
                break
            text.append(f"{data[offset]:0{width}b}")
            width = 7 if data[offset] == 0xFF else 8
            offset += 1
        self.stop = offset
        self.text = "".join(text)
        self.i = 0

    def raw(self, _value, count):
        if self.i + count > len(self.text):
            raise EOFError
        value = int(self.text[self.i : self.i + count] or "0", 2)
        self.i += count
        return value

    def golomb(self, _value, k, limit, qbpp):
        zeros = 0
        while not self.raw(None, 1):
            zeros += 1
        if zeros < limit - qbpp - 1:
            return zeros << k | self.raw(None, k)
        assert zeros == limit - qbpp - 1
        return self.raw(None, qbpp) + 1


@dataclass
class Parameters:
    """Coding parameters; thresholds and RESET of ``None`` mean the defaults (C.2.4.1.1)."""

    precision: int
    near: int = 0
    maxval: int | None = None
    thresholds: tuple | None = None
    reset: int = 64

    def __post_init__(self):
        self.is_default = self.maxval is None and self.thresholds is None and self.reset == 64
        self.maxval = self.maxval or 2**self.precision - 1
        near, maxval = self.near, self.maxval
        if self.thresholds is None:
            if maxval >= 128:
                factor = (min(maxval, 4095) + 128) // 256
                basis = [factor * (3 - 2) + 2, factor * (7 - 3) + 3, factor * (21 - 4) + 4]
                wanted = [b + c * near for b, c in zip(basis, (3, 5, 7), strict=True)]
            else:
                factor = 256 // (maxval + 1)
                wanted = [max(low, b // factor + c * near) for low, b, c in ((2, 3, 3), (3, 7, 5), (4, 21, 7))]
            lowest, chosen = near + 1, []
            for value in wanted:
                lowest = lowest if value > maxval or value < lowest else value
                chosen.append(lowest)
            self.thresholds = tuple(chosen)
        self.range = (maxval + 2 * near) // (2 * near + 1) + 1
        self.qbpp = int(np.ceil(np.log2(self.range)))
        bpp = max(2, int(np.ceil(np.log2(maxval + 1))))
        self.limit = 2 * (bpp + max(8, bpp))


class Model:
    """The variables of A.2.1 and the coding of one sample."""

    def __init__(self, parameters, n_components):
        self.p = parameters
        start = max(2, (parameters.range + 2**5) // 2**6)
        self.A = [start] * 367
        self.B = [0] * 365
        self.C = [0] * 365
        self.N = [1] * 367
        self.Nn = [0] * 367
        self.run_index = [0] * n_components

    def region(self, difference):
        t1, t2, t3 = self.p.thresholds
        magnitude = abs(difference)
        value = 4 if magnitude >= t3 else 3 if magnitude >= t2 else 2 if magnitude >= t1 else magnitude > self.p.near
        return value if difference > 0 else -value

    def context(self, a, b, c, d):
        return self.region(d - b), self.region(b - c), self.region(c - a)

    def quantise(self, error):
        near = self.p.near
        error = (error + near) // (2 * near + 1) if error > 0 else -((near - error) // (2 * near + 1))
        if error < 0:
            error += self.p.range
        return error - self.p.range if error >= (self.p.range + 1) // 2 else error

    def reconstruct(self, predicted, error):
        p = self.p
        value = predicted + error * (2 * p.near + 1)
        if value < -p.near:
            value += p.range * (2 * p.near + 1)
        elif value > p.maxval + p.near:
            value -= p.range * (2 * p.near + 1)
        return min(max(value, 0), p.maxval)

    def regular(self, bits, sample, regions, a, b, c):
        p = self.p
        sign = -1 if regions < (0, 0, 0) else 1
        q = sum(factor * region * sign for factor, region in zip((81, 9, 1), regions, strict=True))
        predicted = min(a, b) if c >= max(a, b) else max(a, b) if c <= min(a, b) else a + b - c
        predicted = min(max(predicted + sign * self.C[q], 0), p.maxval)
        k = 0
        while self.N[q] << k < self.A[q]:
            k += 1
        is_inverted = p.near == 0 and k == 0 and 2 * self.B[q] <= -self.N[q]
        mapped = None
        if sample is not None:
            error = self.quantise(sign * (sample - predicted))
            if is_inverted:
                mapped = 2 * error + 1 if error >= 0 else -2 * (error + 1)
            else:
                mapped = 2 * error if error >= 0 else -2 * error - 1
        mapped = bits.golomb(mapped, k, p.limit, p.qbpp)
        if is_inverted:
            error = mapped // 2 if mapped % 2 else -(mapped // 2) - 1
        else:
            error = -(mapped + 1) // 2 if mapped % 2 else mapped // 2
        self.update(q, error)
        return self.reconstruct(predicted, sign * error)

    def update(self, q, error):
        self.B[q] += error * (2 * self.p.near + 1)
        self.A[q] += abs(error)
        if self.N[q] == self.p.reset:
            self.A[q] >>= 1
            self.B[q] = self.B[q] >> 1 if self.B[q] >= 0 else -((1 - self.B[q]) >> 1)
            self.N[q] >>= 1
        self.N[q] += 1
        if self.B[q] <= -self.N[q]:
            self.B[q] += self.N[q]
            self.C[q] = max(self.C[q] - 1, -128)
            if self.B[q] <= -self.N[q]:
                self.B[q] = -self.N[q] + 1
        elif self.B[q] > 0:
            self.B[q] -= self.N[q]
            self.C[q] = min(self.C[q] + 1, 127)
            self.B[q] = min(self.B[q], 0)

    def interruption(self, bits, sample, a, b, kind, order):
        p = self.p
        q = 365 + kind
        predicted = a if kind else b
        sign = -1 if kind == 0 and a > b else 1
        total = self.A[q] + (self.N[q] >> 1) * kind
        k = 0
        while self.N[q] << k < total:
            k += 1
        mapped = None
        if sample is not None:
            error = self.quantise(sign * (sample - predicted))
            is_mapped = (
                (k == 0 and error > 0 and 2 * self.Nn[q] < self.N[q])
                or (error < 0 and 2 * self.Nn[q] >= self.N[q])
                or (error < 0 and k != 0)
            )
            mapped = 2 * abs(error) - kind - is_mapped
        mapped = bits.golomb(mapped, k, p.limit - order - 1, p.qbpp)
        magnitude, is_mapped = (mapped + kind + 1) // 2, (mapped + kind) % 2
        is_negative = is_mapped if k != 0 or 2 * self.Nn[q] >= self.N[q] else not is_mapped
        error = -magnitude if is_negative else magnitude
        if error < 0:
            self.Nn[q] += 1
        self.A[q] += (mapped + 1 - kind) >> 1
        if self.N[q] == p.reset:
            self.A[q] >>= 1
            self.N[q] >>= 1
            self.Nn[q] >>= 1
        self.N[q] += 1
        return self.reconstruct(predicted, sign * error)

    def run(self, bits, i, length, room):
        """Code a run of ``length`` (``None`` when reading) samples, ``room`` to the end of the line (A.7.1)."""
        done = 0
        while True:
            order = ORDERS[self.run_index[i]]
            wanted = None if length is None else int(length - done >= 2**order or length == room)
            if bits.raw(wanted, 1):
                step = min(2**order, room - done)
                done += step
                if step == 2**order:
                    self.run_index[i] = min(31, self.run_index[i] + 1)
                if done == room:
                    return done
            else:
                return done + bits.raw(None if length is None else length - done, order)


def walk(bits, model, planes, sources, rows, is_sample):
    """Code ``rows`` (a range of lines) of one interval; ``planes`` (n, rows, columns) receive what a decoder sees."""
    n, _, columns = planes.shape
    near = model.p.near
    above = np.zeros((n, columns + 2), int).tolist()
    for y in rows:
        lines = [[above[i][1]] + [0] * (columns + 1) for i in range(n)]
        for i in range(n):
            above[i][columns + 1] = above[i][columns]
        for group in [list(range(n))] if is_sample else [[i] for i in range(n)]:
            x = 0
            while x < columns:
                near_by = {i: (lines[i][x], above[i][x + 1], above[i][x], above[i][x + 2]) for i in group}
                regions = {i: model.context(*near_by[i]) for i in group}
                if any(any(regions[i]) for i in group):
                    for i in group:
                        sample = None if sources is None else int(sources[i][y][x])
                        lines[i][x + 1] = model.regular(bits, sample, regions[i], *near_by[i][:3])
                    x += 1
                    continue
                length = None
                if sources is not None:
                    length = 0
                    while x + length < columns and all(
                        abs(int(sources[i][y][x + length]) - lines[i][x]) <= near for i in group
                    ):
                        length += 1
                length = model.run(bits, group[0], length, columns - x)
                for i in group:
                    lines[i][x + 1 : x + 1 + length] = [lines[i][x]] * length
                x += length
                if x == columns:
                    break
                order = ORDERS[model.run_index[group[0]]]
                for i in group:
                    a, b = lines[i][x], above[i][x + 1]
                    kind = int(abs(a - b) <= near) if not is_sample else 0
                    sample = None if sources is None else int(sources[i][y][x])
                    lines[i][x + 1] = model.interruption(bits, sample, a, b, kind, order)
                model.run_index[group[0]] = max(0, model.run_index[group[0]] - 1)
                x += 1
        for i in range(n):
            planes[i, y] = lines[i][1 : columns + 1]
        above = lines


def _segment(marker, content):
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


def _words(*values):
    return b"".join(value.to_bytes(2, "big") for value in values)


def encode(image, precision, *, interleave=0, restart=0, **options):
    """Encode (rows, columns[, samples]); return (codestream, the image that a decoder must return)."""
    p = Parameters(precision, **options)
    planes = np.atleast_3d(image).transpose(2, 0, 1).astype(int)
    n, rows, columns = planes.shape
    seen = np.zeros_like(planes)
    out = b"\xff\xd8"
    frame = bytes([precision]) + _words(rows, columns) + bytes([n])
    out += _segment(0xF7, frame + b"".join(bytes([i + 1, 0x11, 0]) for i in range(n)))
    if not p.is_default:
        out += _segment(0xF8, b"\1" + _words(p.maxval, *p.thresholds, p.reset))
    if restart:
        out += _segment(0xDD, _words(restart))
    for group in [[i] for i in range(n)] if interleave == 0 else [list(range(n))]:
        names = b"".join(bytes([i + 1, 0]) for i in group)
        out += _segment(0xDA, bytes([len(group)]) + names + bytes([p.near, interleave, 0]))
        for count, first in enumerate(range(0, rows, restart or rows)):
            bits = Writer()
            part = seen[group]
            lines = range(first, min(rows, first + (restart or rows)))
            walk(bits, Model(p, len(group)), part, planes[group], lines, interleave == 2)
            seen[group] = part
            out += (bytes([0xFF, 0xD0 + (count - 1) % 8]) if count else b"") + bits.finish()
    return out + b"\xff\xd9", seen.transpose(1, 2, 0).reshape(image.shape)


def decode(data, shape, precision, *, interleave=0, restart=0, **options):
    """Decode what ``encode`` wrote with the same arguments."""
    p = Parameters(precision, **options)
    rows, columns, n = (*shape, 1)[:3]
    planes = np.zeros((n, rows, columns), int)
    position = 0
    for group in [[i] for i in range(n)] if interleave == 0 else [list(range(n))]:
        position = data.index(b"\xff\xda", position)
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        for first in range(0, rows, restart or rows):
            bits = Reader(data, position)
            part = planes[group]
            lines = range(first, min(rows, first + (restart or rows)))
            walk(bits, Model(p, len(group)), part, None, lines, interleave == 2)
            planes[group] = part
            position = bits.stop + 2
        position -= 2
    return planes.transpose(1, 2, 0).reshape(shape)
