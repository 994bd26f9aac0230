"""The outputs of a run: submission, record and report."""
