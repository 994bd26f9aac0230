"""Files other than DICOM: atomic writing, tables, JSON, and text that is safe to show."""
