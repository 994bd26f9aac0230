"""What a file may ask for at most: beyond these it is refused before any memory or time is spent on it."""

from __future__ import annotations

MAX_FILE_BYTES = 1 << 29  # of one file; the largest multi-frame series of a spine have some 300 MB
MAX_INFLATED_BYTES = 1 << 29  # of a deflated data set
MAX_INFLATED_PER_BYTE = 16  # for each byte of the file: MR deflates to a half, an empty image to a thousandth
MIN_INFLATED_BYTES = 1 << 24  # that much is granted to a file of any size
MAX_RECOVERED_BYTES = 1 << 26  # of a file in which malformed elements are recovered from
MAX_GROUP_ELEMENTS = 1 << 18  # elements in the functional groups of one file
