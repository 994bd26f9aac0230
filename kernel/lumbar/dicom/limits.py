"""Limits for what a file's header and codestreams may claim, checked before anything is allocated for it.

A few bytes can claim a large image, thousands of scans or millions of fragments. The ratio of pixels to bytes alone
does not tell such files from valid ones, since a blank slice of 4096 x 4096 pixels takes 200 bytes in JPEG 2000. So
every file may need what an ordinary image needs (the names with FLOOR), and more only in proportion to its size.
"""

from __future__ import annotations

from lumbar.errors import DicomError

MAX_FILE_BYTES = 1 << 29  # of one file; the largest multi-frame series of a spine have some 300 MB
MAX_INFLATED_BYTES = 1 << 29  # of a deflated data set
MAX_INFLATED_PER_BYTE = 16  # for each byte of the file: MR deflates to a half, an empty image to a thousandth
MIN_INFLATED_BYTES = 1 << 24  # a file of any size may inflate to so many bytes
MAX_RECOVERED_BYTES = 1 << 26  # of a file that is read in spite of malformed elements
MAX_GROUP_ELEMENTS = 1 << 18  # elements in the functional groups of one file

MAX_FRAME_PIXELS = 48 << 20  # the largest mammograms have 30 million; reading a series takes 8 bytes for each
MAX_FRAMES = 1 << 14  # encapsulated: 100 volumes of 160 slices, or four minutes of 60 images a second

# Memory for decoded pixels and for decoding them. With it, no file below 10 MB needs more than 500 MB: the difference
# is for the file itself and copies of its bytes.
MEMORY_FLOOR = 384 << 20
MEMORY_PER_BYTE = 40  # cine ultrasound by JPEG reaches 30 bytes of pixels for each byte of the file

# All volumes of one series together: 192 axial slices of 1024 x 1024 take 0.8 GB.
VOLUME_FLOOR = 2 << 30

# Fragments (items) of encapsulated pixel data: one for each frame, and one for each so many bytes of the file. In
# practice the smallest have a few KB. Each takes the memory of two numbers.
MIN_FRAGMENT_BYTES = 256
FRAGMENT_FLOOR = 64  # allowed in files of any size
MAX_FRAGMENTS = 1 << 18

# JPEG: progressive images have 10 scans in the standard's examples and at most about 30 from optimisers. Each scan is a
# pass over the whole image, even where it has only a few bytes.
MAX_SCANS = 64
SCAN_FLOOR = 16  # allowed in images of any size
MAX_SCANNED_PIXELS = 1 << 30  # for more scans than that: scans times the pixels of all frames
MAX_SEGMENTS = 4096  # marker segments and tables before the last scan; a colour profile takes 255 at most

# JPEG 2000: the memory and time that a tile, a code-block or a packet takes has no relation to its bytes.
MAX_TILES = 1 << 14  # 4096 x 4096 pixels in tiles of 32 x 32; several frames share what goes beyond their bytes
MIN_TILE_BYTES = 14  # of the header of one tile-part
MAX_TILE_PARTS = 1 << 14
MAX_LAYERS = 256  # Kakadu's largest profiles have 50
PACKET_FLOOR = 1 << 20  # allowed in files of any size; an empty packet takes one byte, so more need as many bytes
MAX_POSITIONS = 1 << 24  # in all frames: positions at which OpenJPEG looks for precincts, many for each packet
TILE_BYTES = 8192  # of OpenJPEG's record of one tile
CODE_BLOCK_BYTES = 700  # of its record of one code-block, with the ten segments that it makes room for at once
CODE_BLOCK_BYTES_SEGMENTED = 5600  # where every coding pass may be a segment of its own
PRECINCT_BYTES = 400  # of its record of one precinct of one resolution, with two tag trees for each of three bands


def memory_limit(n_bytes: int) -> int:
    """Bytes of memory that a file of ``n_bytes`` may need."""
    return max(MEMORY_FLOOR, MEMORY_PER_BYTE * n_bytes)


def check_memory(path: str, needed: int, n_bytes: int, what: str) -> None:
    """Refuse a file of ``n_bytes`` bytes that needs ``needed`` bytes of memory for ``what``.

    Raises:
        DicomError: it needs more than ``memory_limit``.
    """
    if needed > memory_limit(n_bytes):
        raise DicomError(
            f"{path}: found {what} in {n_bytes} bytes, which need {needed} bytes of memory, expected at most "
            f"{memory_limit(n_bytes)}"
        )


def check_image(
    path: str, shape: tuple[int, ...], itemsize: int, n_frames: int, n_bytes: int, working_bytes: int
) -> None:
    """Refuse encapsulated pixels that are more than a file of its size may ask for.

    Args:
        path: the file, for the message.
        shape: of one frame, (rows, columns) or (rows, columns, samples).
        itemsize: bytes of a decoded sample.
        n_frames: how many frames there are.
        n_bytes: the file's size.
        working_bytes: memory that the codec needs in addition for every sample of the frame that it decodes.

    Raises:
        DicomError: too many pixels in a frame, too many frames, or too much memory for all of them.
    """
    n_pixels = shape[0] * shape[1]
    if n_pixels > MAX_FRAME_PIXELS:
        raise DicomError(
            f"{path}: found a frame of {shape[0]} x {shape[1]} pixels, expected at most {MAX_FRAME_PIXELS} pixels"
        )
    if n_frames > MAX_FRAMES:
        raise DicomError(f"{path}: found {n_frames} frames, expected at most {MAX_FRAMES}")
    n_samples = n_pixels * (shape[2] if len(shape) == 3 else 1)
    at_hand = n_samples * (itemsize + working_bytes) if n_frames > 1 else n_samples * working_bytes
    needed = n_frames * n_samples * itemsize + at_hand
    check_memory(path, needed, n_bytes, f"{n_frames} frame(s) of {' x '.join(map(str, shape))} samples")


def max_fragments(n_frames: int, n_bytes: int) -> int:
    """The largest number of fragments of ``n_frames`` frames in a file of ``n_bytes`` bytes."""
    return min(MAX_FRAGMENTS, n_frames + FRAGMENT_FLOOR + n_bytes // MIN_FRAGMENT_BYTES)


def check_volumes(series_id: str, n_pixels: int, n_bytes: int) -> None:
    """Refuse a series whose volumes would hold ``n_pixels`` float32 values, if its files have only ``n_bytes`` bytes.

    Raises:
        DicomError: they are more than ``VOLUME_FLOOR`` and than ``MEMORY_PER_BYTE`` for each byte of the files.
    """
    most = max(VOLUME_FLOOR, MEMORY_PER_BYTE * n_bytes)
    if 4 * n_pixels > most:
        raise DicomError(
            f"series {series_id}: found {n_pixels} pixels in {n_bytes} bytes of files, which need {4 * n_pixels} bytes "
            f"of memory, expected at most {most}"
        )
