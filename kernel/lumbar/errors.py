"""The errors of the kit. A message names the file or value, what was found and what was expected."""


class LumbarError(Exception):
    """Base of all errors of the kit; the command line prints its message as one line and exits with 1."""


class DicomError(LumbarError):
    """A file or series that cannot be read as DICOM."""


class ManifestError(LumbarError):
    """Weights, configs and code that do not belong together."""


class CohortError(LumbarError):
    """A competition folder whose tables or images are not what they should be."""
