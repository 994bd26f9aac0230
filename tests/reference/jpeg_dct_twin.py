"""Sequential DCT JPEG of one component in plain Python, both ways, written from ITU-T T.81: slow and obvious.

The inverse transform is the defining double sum (A.3.3) in floating point, so decoders agree with it within 1. The
encoder offers what library encoders do not: any Huffman code lengths, 16-bit quantisation tables, restart intervals
with either end of the table numbers.
"""

import numpy as np

# Figure A.6, walked: diagonals in turn up and down.
ZIGZAG = sorted(
    ((row, column) for row in range(8) for column in range(8)),
    key=lambda at: (sum(at), at[0] if sum(at) % 2 else at[1]),
)
# Row u: the cosine of frequency u at the eight positions, scaled to an orthonormal basis.
BASIS = np.array(
    [[np.cos((2 * x + 1) * u * np.pi / 16) / 2 * (np.sqrt(0.5) if u == 0 else 1) for x in range(8)] for u in range(8)]
)
DC_SYMBOLS = list(range(16))
AC_SYMBOLS = [0, 0xF0] + [run << 4 | size for size in range(1, 16) for run in range(16)]
DC_COUNTS = [0, 1, 2, 2, 2, 2, 2, 2, 2, 1] + [0] * 6
AC_COUNTS = [0, 1, 2, 2, 2, 4, 4, 4, 4, 4, 4, 4, 4, 4, 64, 135]


def codes(counts, symbols):
    """Symbol -> (code, length), by the procedure of annex C."""
    table, code, rest = {}, 0, iter(symbols)
    for length, count in enumerate(counts, start=1):
        for _ in range(count):
            table[next(rest)] = (code, length)
            code += 1
        code <<= 1
    return table


def blocks(image, precision):
    """Samples in blocks around 0, (rows, columns, 8, 8), edges repeated."""
    rows, columns = -(-image.shape[0] // 8), -(-image.shape[1] // 8)
    padded = np.pad(image, [(0, 8 * rows - image.shape[0]), (0, 8 * columns - image.shape[1])], mode="edge")
    return padded.reshape(rows, 8, columns, 8).swapaxes(1, 2).astype(float) - 2 ** (precision - 1)


def magnitude(value):
    """Size category and the bits that follow it (F.1.2.1)."""
    size = int(abs(value)).bit_length()
    return size, f"{value if value > 0 else value + 2**size - 1:0{size}b}" if size else ""


def encode(image, precision, *, quantisation=None, restart=0, wide_tables=False, marker=0xC1, numbers=(0, 0, 0)):
    """Encode (rows, columns); ``quantisation``: (64,) in zigzag order; ``numbers``: of the three tables."""
    quantisation = np.ones(64, int) if quantisation is None else quantisation
    dc, ac = codes(DC_COUNTS, DC_SYMBOLS), codes(AC_COUNTS, AC_SYMBOLS)

    def code(table, symbol):
        return f"{table[symbol][0]:0{table[symbol][1]}b}"

    intervals, text, predictor = [], "", 0
    for i, block in enumerate(blocks(image, precision).reshape(-1, 8, 8)):
        if restart and i and i % restart == 0:
            intervals.append(text)
            text, predictor = "", 0
        spectrum = BASIS @ block @ BASIS.T
        values = [round(spectrum[at] / q) for at, q in zip(ZIGZAG, quantisation.tolist(), strict=True)]
        size, bits = magnitude(values[0] - predictor)
        predictor = values[0]
        text += code(dc, size) + bits
        run = 0
        for value in values[1:]:
            if value == 0:
                run += 1
                continue
            while run > 15:
                text += code(ac, 0xF0)
                run -= 16
            size, bits = magnitude(value)
            text += code(ac, run << 4 | size) + bits
            run = 0
        text += code(ac, 0) if run else ""
    intervals.append(text)
    return _stream(image.shape, precision, intervals, quantisation, restart, wide_tables, marker, numbers)


def _stream(shape, precision, intervals, quantisation, restart, wide_tables, marker, numbers):
    def segment(kind, content):
        return bytes([0xFF, kind]) + (len(content) + 2).to_bytes(2, "big") + bytes(content)

    def table(first, counts, symbols):
        return segment(0xC4, [first, *counts, *symbols])

    q, dc, ac = numbers
    steps = np.asarray(quantisation).astype(">u2" if wide_tables else "u1").tobytes()
    size = shape[0].to_bytes(2, "big") + shape[1].to_bytes(2, "big")
    out = b"\xff\xd8" + segment(0xDB, bytes([wide_tables << 4 | q]) + steps)
    out += segment(marker, bytes([precision]) + size + bytes([1, 1, 0x11, q]))
    out += table(dc, DC_COUNTS, DC_SYMBOLS) + table(0x10 | ac, AC_COUNTS, AC_SYMBOLS)
    if restart:
        out += segment(0xDD, restart.to_bytes(2, "big"))
    out += segment(0xDA, [1, 1, dc << 4 | ac, 0, 63, 0])
    for i, text in enumerate(intervals):
        text += "1" * (-len(text) % 8)
        out += bytes([0xFF, 0xD0 + (i - 1) % 8]) if i else b""
        out += int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")
    return out + b"\xff\xd9"


def decode(data, shape, precision, *, restart=0):
    """Decode a stream of one component; tables are taken from it, sizes from the arguments."""
    quantisation, tables, position = None, {}, 2
    while data[position + 1] != 0xDA:
        kind, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        content = data[position + 4 : position + 2 + length]
        if kind == 0xDB:
            quantisation = np.frombuffer(content[1:], ">u2" if content[0] >> 4 else "u1").astype(float)
        elif kind == 0xC4:
            while content:
                n = 17 + sum(content[1:17])
                table = codes(content[1:17], content[17:n])
                tables[content[0] >> 4] = {f"{code:0{size}b}": symbol for symbol, (code, size) in table.items()}
                content = content[n:]
        position += 2 + length
    position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    rows, columns = -(-shape[0] // 8), -(-shape[1] // 8)
    out = np.zeros((rows, columns, 8, 8))
    bits = iter(())
    for i in range(rows * columns):
        if i == 0 or (restart and i % restart == 0):
            text, position = _interval(data, position)
            bits, predictor = iter(text), 0
        values = np.zeros(64)
        predictor += _value(bits, _symbol(bits, tables[0]))
        values[0] = predictor
        k = 1
        while k < 64:
            symbol = _symbol(bits, tables[1])
            if symbol == 0:
                break
            k += symbol >> 4
            values[k] = _value(bits, symbol & 15)
            k += 1
        spectrum = np.zeros((8, 8))
        for at, value in zip(ZIGZAG, values * quantisation, strict=True):
            spectrum[at] = value
        out[i // columns, i % columns] = BASIS.T @ spectrum @ BASIS
    image = out.swapaxes(1, 2).reshape(8 * rows, 8 * columns)[: shape[0], : shape[1]]
    return np.clip(np.rint(image + 2 ** (precision - 1)), 0, 2**precision - 1).astype(int)


def _interval(data, position):
    """Bits up to the next marker, and the offset after it."""
    stop = position
    while not (data[stop] == 0xFF and data[stop + 1] != 0):
        stop += 1
    return "".join(f"{byte:08b}" for byte in data[position:stop].replace(b"\xff\0", b"\xff")), stop + 2


def _symbol(bits, table):
    word = ""
    while word not in table:
        word += next(bits)
    return table[word]


def _value(bits, size):
    word = "".join(next(bits) for _ in range(size))
    return 0 if not size else int(word, 2) if word[0] == "1" else int(word, 2) - 2**size + 1
