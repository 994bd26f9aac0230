"""What a run leaves: submission, record, report."""
