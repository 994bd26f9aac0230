"""Bytes of a file to the fields of its header."""
