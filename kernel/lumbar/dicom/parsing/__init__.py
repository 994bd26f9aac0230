"""From the bytes of a file to the fields of its header."""
