"""Pixels out of frames: one module a family of transfer syntaxes, with its kernels."""
