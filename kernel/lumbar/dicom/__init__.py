"""DICOM files to arrays and stacks in patient space, by numba kernels."""
