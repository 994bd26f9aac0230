"""Any folder of DICOM as studies: an index of headers, what each series shows, and why the others are left out."""
