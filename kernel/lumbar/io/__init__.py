"""Files other than DICOM: atomic writing, tables, JSON, and text that is fit to be shown."""
