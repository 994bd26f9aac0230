"""Reads DICOM files as arrays, and series as stacks in patient space, with decoders compiled by numba.

It never imports torch. A transfer syntax is one module in ``codecs`` (``lumbar.dicom.pixels.Codec``) and a row in
``lumbar.dicom.pixels.CODECS``; the module is imported when the first file needs it.
"""

from lumbar.dicom.header import Header, read_header
from lumbar.dicom.pixels import Slice, read_slice, warm_up
from lumbar.dicom.series import Series, read_series
from lumbar.dicom.stack import Stack
from lumbar.errors import DicomError

__all__ = ["DicomError", "Header", "Series", "Slice", "Stack", "read_header", "read_series", "read_slice", "warm_up"]
