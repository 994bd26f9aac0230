"""The codecs: one module for each family of transfer syntaxes (``lumbar.dicom.pixels.Codec``), and their kernels."""
