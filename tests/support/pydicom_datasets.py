"""Compressed images as data sets of pydicom: its bundled files, and new ones of any depth, sign, colour and length."""

import logging
import warnings
from contextlib import contextmanager
from pathlib import Path

import imagecodecs
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder

import rle_encoder
from codec_frames import noisy_image
from lumbar.dicom import pydicom_plugin

RLE = "1.2.840.10008.1.2.5"
BASELINE, EXTENDED, LOSSLESS, LOSSLESS_SV1, LS, LS_NEAR = (
    f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70, 80, 81)
)
ENCODERS = {
    RLE: lambda image, _: rle_encoder.encode(image),
    BASELINE: lambda image, _: imagecodecs.jpeg_encode(image, level=90),
    EXTENDED: lambda image, bits: imagecodecs.jpeg_encode(image, level=90, bitspersample=bits),
    LOSSLESS: lambda image, bits: imagecodecs.jpeg_encode(image, lossless=True, bitspersample=bits, predictor=6),
    LOSSLESS_SV1: lambda image, bits: imagecodecs.jpeg_encode(image, lossless=True, bitspersample=bits, predictor=1),
    LS: lambda image, _: imagecodecs.jpegls_encode(image),
    LS_NEAR: lambda image, _: imagecodecs.jpegls_encode(image, level=2),
}


@contextmanager
def quiet():
    """Neither pydicom's warnings about its own test files, nor its log of plugins that failed."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def load(path):
    """A data set from a file."""
    with quiet():
        return pydicom.dcmread(path, force=True)


def bundled_files():
    """The files in pydicom's package whose transfer syntax the plugin decodes, by name."""
    files = {}
    for path in sorted((Path(pydicom.__path__[0]) / "data").rglob("*.dcm")):
        dataset = load(path)
        syntax = dataset.file_meta.get("TransferSyntaxUID", "")
        if syntax in pydicom_plugin.DECODER_DEPENDENCIES and "PixelData" in dataset:
            files[path.name] = path
    return files


def dataset_of(images, syntax, bits, *, allocated=None, signed=0, photometric=None, planar=0, frames=None):
    """A data set of encoded ``images``; ``frames`` are codestreams to take instead."""
    image = images[0]
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    dataset.Rows, dataset.Columns = image.shape[:2]
    dataset.SamplesPerPixel = 1 if image.ndim == 2 else 3
    if image.ndim == 3:
        dataset.PlanarConfiguration = planar
    dataset.BitsAllocated = allocated or 8 * image.dtype.itemsize
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = bits, bits - 1, signed
    dataset.PhotometricInterpretation = photometric or ("MONOCHROME2" if image.ndim == 2 else "RGB")
    if len(images) > 1:
        dataset.NumberOfFrames = len(images)
    dataset.PixelData = encapsulate(frames or [bytes(ENCODERS[syntax](image, bits)) for image in images])
    dataset["PixelData"].VR = "OB"
    return dataset


def images_of(bits, samples, n):
    """``n`` different noisy images of odd size."""
    shape = (37, 52) if samples == 1 else (37, 52, samples)
    return [noisy_image(shape, bits, seed=seed) for seed in range(n)]


def decode(dataset, plugin, **options):
    """Pixels and what pydicom says of them, by one plugin."""
    with quiet():
        return get_decoder(dataset.file_meta.TransferSyntaxUID).as_array(dataset, decoding_plugin=plugin, **options)


def decode_by_another(dataset, **options):
    """The same by the first of pydicom's own plugins that decodes it, and that plugin's name; ``None`` if none does."""
    for plugin in get_decoder(dataset.file_meta.TransferSyntaxUID)._available:
        if plugin != pydicom_plugin.LABEL:
            try:
                return *decode(dataset, plugin, **options), plugin
            except RuntimeError:
                continue
    return None
