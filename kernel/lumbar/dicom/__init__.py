"""DICOM files to arrays and stacks in patient space, by numba kernels.

Never imports torch. A transfer syntax is one module with three names (``TRANSFER_SYNTAXES``, ``decode_frame``,
``warm_up``) and a row in ``pixels.CODECS``; it is imported when the first file needs it.
"""

from lumbar.dicom.header import Header, read_header
from lumbar.dicom.pixels import Slice, read_slice, warm_up
from lumbar.dicom.series import Series, read_series
from lumbar.dicom.stack import Stack

__all__ = ["Header", "Series", "Slice", "Stack", "read_header", "read_series", "read_slice", "warm_up"]
