"""Small valid DICOM files of every transfer syntax and many of its variants, as seeds for mutation."""

import warnings
from io import BytesIO

import cv2
import imagecodecs
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.uid import generate_uid

import fuzz_header
from codec_frames import noisy_image, patchy_image
from reference import jpeg_dct_twin, jpeg_ls_twin

IMPLICIT, EXPLICIT, DEFLATED, BIG = (f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".1.99", ".2"))
RLE = "1.2.840.10008.1.2.5"
SHAPE = (20, 27)


def syntax(end):
    return f"1.2.840.10008.1.2.4.{end}"


def dicom_file(uid, frames, shape, *, allocated=16, stored=None, signed=0, photometric=None, table="basic"):
    """A DICOM file's bytes; ``frames``: bytes of each frame, encoded where ``uid`` is an encapsulated syntax."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.4", generate_uid(entropy_srcs=["fuzz"])
    ds.Modality, ds.SeriesInstanceUID, ds.InstanceNumber = "MR", generate_uid(entropy_srcs=["series"]), 7
    ds.ImagePositionPatient, ds.ImageOrientationPatient = [-10.5, 20, 3], [1, 0, 0, 0, 0, -1]
    ds.PixelSpacing, ds.SliceThickness, ds.RescaleSlope, ds.RescaleIntercept = [0.5, 0.6], 4, 2, -5
    ds.WindowCenter, ds.WindowWidth = [400, 300], [800, 600]
    item = Dataset()
    item.CodeValue, item.PixelSpacing = "T-D0050", [1, 1]
    ds.AnatomicRegionSequence = [item]
    ds.SamplesPerPixel = shape[2] if len(shape) == 3 else 1
    ds.PhotometricInterpretation = photometric or ("RGB" if len(shape) == 3 else "MONOCHROME2")
    if len(shape) == 3:
        ds.PlanarConfiguration = 0
    if len(frames) > 1:
        ds.NumberOfFrames = len(frames)
    ds.Rows, ds.Columns = shape[:2]
    ds.BitsAllocated, ds.BitsStored = allocated, stored or allocated
    ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, signed
    if uid in (IMPLICIT, EXPLICIT, DEFLATED, BIG):
        ds.PixelData = b"".join(frames)
        ds["PixelData"].VR = "OB" if allocated == 8 else "OW"
    elif table == "extended":
        ds.PixelData, ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths = encapsulate_extended(frames)
        ds["PixelData"].VR = "OB"
    else:
        ds.PixelData = encapsulate(frames, fragments_per_frame=2 if table == "split" else 1, has_bot=table != "empty")
        ds["PixelData"].VR = "OB"
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = uid
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    out = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds.save_as(out, implicit_vr=uid == IMPLICIT, little_endian=uid != BIG, enforce_file_format=True)
    return out.getvalue()


def rle(image):
    """One frame (PS3.5 G.3): a segment for each byte of each sample, the most significant byte first."""
    octets = image.reshape(image.shape[0], image.shape[1], -1)[..., None].view(np.uint8)[..., ::-1]
    segments = [imagecodecs.packbits_encode(octets[..., i, j].tobytes()) for i, j in np.ndindex(octets.shape[2:])]
    segments = [segment + b"\0" * (len(segment) % 2) for segment in segments]
    offsets = np.cumsum([64] + [len(segment) for segment in segments])[:-1].tolist()
    words = np.array([len(segments), *offsets, *[0] * (15 - len(segments))], "<u4")
    return words.tobytes() + b"".join(segments)


def lossless(image, predictor, bits):
    return imagecodecs.jpeg_encode(image, lossless=True, predictor=predictor, bitspersample=bits)


def _native(grey, colour):
    yield "implicit", dicom_file(IMPLICIT, [grey.tobytes()], SHAPE, stored=12)
    yield "explicit", dicom_file(EXPLICIT, [grey.tobytes()], SHAPE, stored=12)
    yield "explicit signed frames", dicom_file(EXPLICIT, [grey.tobytes()] * 3, SHAPE, stored=12, signed=1)
    yield "explicit colour", dicom_file(EXPLICIT, [colour.tobytes()], colour.shape, allocated=8)
    yield "deflated", dicom_file(DEFLATED, [grey.tobytes()], SHAPE, stored=12)
    yield "big", dicom_file(BIG, [grey.byteswap().tobytes()], SHAPE, stored=12)


def _rle(grey, colour):
    small = patchy_image(SHAPE, 8)
    yield "rle 16", dicom_file(RLE, [rle(grey)], SHAPE, stored=12)
    yield "rle 8", dicom_file(RLE, [rle(small)], SHAPE, allocated=8)
    yield "rle 32", dicom_file(RLE, [rle(grey.astype(np.uint32) * 70001)], SHAPE, allocated=32)
    yield "rle colour", dicom_file(RLE, [rle(colour)], colour.shape, allocated=8)
    yield "rle frames", dicom_file(RLE, [rle(grey), rle(grey[::-1].copy())], SHAPE, stored=12, table="extended")


def _lossless(grey, colour):
    for predictor in range(1, 8):
        data = lossless(grey, predictor, 12)
        yield f"lossless {predictor}", dicom_file(syntax(70 if predictor == 1 else 57), [data], SHAPE, stored=12)
    frames = [lossless(grey, 1, 16), lossless(grey[::-1].copy(), 1, 16)]
    yield "lossless frames", dicom_file(syntax(70), frames, SHAPE, table="split")
    yield "lossless colour", dicom_file(syntax(57), [lossless(colour, 4, 8)], colour.shape, allocated=8)


def _jpeg_ls(grey, colour):
    for name, bits, options in (
        ("plain", 12, {}),
        ("near", 12, {"near": 3}),
        ("restart", 12, {"restart": 4}),
        ("parameters", 12, {"thresholds": (3, 9, 50), "reset": 31, "maxval": 4000}),
        ("wide", 16, {}),
    ):
        data, _ = jpeg_ls_twin.encode(np.minimum(grey, options.get("maxval", 65535)), bits, **options)
        yield f"jpeg-ls {name}", dicom_file(syntax(81 if "near" in options else 80), [data], SHAPE, stored=bits)
    data, _ = jpeg_ls_twin.encode(patchy_image(SHAPE, 8), 8)
    yield "jpeg-ls runs", dicom_file(syntax(80), [data], SHAPE, allocated=8)
    for interleave in range(3):
        data, _ = jpeg_ls_twin.encode(colour, 8, interleave=interleave, near=interleave, restart=interleave * 5)
        yield f"jpeg-ls interleave {interleave}", dicom_file(syntax(81), [data], colour.shape, allocated=8)


def _dct(grey, colour):
    small = noisy_image(SHAPE, 8)
    yield "baseline", dicom_file(syntax(50), [imagecodecs.jpeg_encode(small, level=90)], SHAPE, allocated=8)
    data = imagecodecs.jpeg_encode(colour, level=90, colorspace="RGB", outcolorspace="YCBCR")
    yield "baseline colour", dicom_file(syntax(50), [data], colour.shape, allocated=8, photometric="YBR_FULL_422")
    data = imagecodecs.jpeg_encode(grey, level=90, bitspersample=12)
    yield "extended", dicom_file(syntax(51), [data], SHAPE, stored=12)
    data = jpeg_dct_twin.encode(grey, 12, quantisation=np.arange(64) + 3, restart=2, wide_tables=True)
    yield "extended restart", dicom_file(syntax(51), [data], SHAPE, stored=12, table="empty")
    yield "extended 8", dicom_file(syntax(51), [jpeg_dct_twin.encode(small, 8)], SHAPE, allocated=8)


def _jpeg2000(grey, colour):
    def encode(image, bits, **options):
        return imagecodecs.jpeg2k_encode(image, codecformat="j2k", bitspersample=bits, **options)

    data = encode(grey, 12, level=0, reversible=True)
    yield "jpeg2000", dicom_file(syntax(90), [data], SHAPE, stored=12)
    data = encode(grey.astype(np.int16) - 2048, 12, level=0, reversible=True)
    yield "jpeg2000 signed", dicom_file(syntax(90), [data], SHAPE, stored=12, signed=1)
    yield "jpeg2000 lossy", dicom_file(syntax(91), [encode(grey, 12, level=50, reversible=False)], SHAPE, stored=12)
    data = encode(colour, 8, level=0, reversible=True)
    yield "jpeg2000 colour", dicom_file(syntax(90), [data], colour.shape, allocated=8, photometric="YBR_RCT")
    data = imagecodecs.htj2k_encode(grey)
    yield "htj2k", dicom_file(syntax(201), [data], SHAPE)


def _frames(grey, colour):
    """Several frames of each syntax, gray and colour."""
    upside_down = colour[::-1].copy()
    yield (
        "rle colour frames",
        dicom_file(RLE, [rle(colour), rle(upside_down)], colour.shape, allocated=8, table="split"),
    )
    data = [jpeg_ls_twin.encode(image, 8, interleave=2)[0] for image in (colour, upside_down)]
    yield "jpeg-ls colour frames", dicom_file(syntax(80), data, colour.shape, allocated=8)
    data = [imagecodecs.jpeg_encode(image, level=90) for image in (colour, upside_down, colour)]
    yield (
        "baseline colour frames",
        dicom_file(syntax(50), data, colour.shape, allocated=8, photometric="YBR_FULL_422", table="empty"),
    )
    data = [jpeg_dct_twin.encode(image, 12) for image in (grey, grey[::-1].copy())]
    yield "extended frames", dicom_file(syntax(51), data, SHAPE, stored=12, table="extended")
    data = [imagecodecs.jpeg2k_encode(image, codecformat="j2k", level=0) for image in (colour, upside_down)]
    yield "jpeg2000 colour frames", dicom_file(syntax(90), data, colour.shape, allocated=8, photometric="YBR_RCT")


def lying(content, uid):
    """A file whose file meta says another transfer syntax, of as many characters or fewer."""
    at = content.index(b"\x02\0\x10\0UI")
    length = int.from_bytes(content[at + 6 : at + 8], "little")
    return content[: at + 8] + uid.encode().ljust(length, b"\0") + content[at + 8 + length :]


def _lies(grey, colour):
    """Transfer syntaxes that are not those of the pixels."""
    small = noisy_image(SHAPE, 8)
    data = dicom_file(syntax(50), [imagecodecs.jpeg_encode(small, level=90)], SHAPE, allocated=8)
    yield "baseline as lossless", lying(data, syntax(70))
    progressive = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    yield "progressive as baseline", dicom_file(syntax(50), [progressive], SHAPE, allocated=8)
    yield "predictor 6 as SV1", dicom_file(syntax(70), [lossless(grey, 6, 12)], SHAPE, stored=12)
    yield "jpeg-ls as baseline", dicom_file(syntax(50), [jpeg_ls_twin.encode(grey, 12)[0]], SHAPE, stored=12)
    jp2 = imagecodecs.jpeg2k_encode(grey, codecformat="jp2", bitspersample=12, level=0, reversible=True)
    yield "jp2 as rle", lying(dicom_file(syntax(90), [jp2], SHAPE, stored=12), RLE)
    yield "rle as jpeg2000", dicom_file(syntax(90), [rle(grey)], SHAPE, stored=12)
    yield "lossless as native", lying(dicom_file(syntax(70), [lossless(grey, 1, 12)], SHAPE, stored=12), EXPLICIT)
    yield "native in items", lying(dicom_file(RLE, [grey.tobytes()] * 2, SHAPE, stored=12), EXPLICIT)
    # The longer name first, so that the shorter one fits into its place
    native = dicom_file(EXPLICIT, [grey.tobytes()], SHAPE, stored=12)
    at = native.index(b"\x02\0\x10\0UI") + 6
    longer = (22).to_bytes(2, "little") + syntax(90).encode()
    yield "native as jpeg2000", native[:at] + longer + native[at + 2 + len(EXPLICIT) + 1 :]


def seeds():
    """Name -> bytes of each file."""
    grey, colour = noisy_image(SHAPE, 12), noisy_image((*SHAPE, 3), 8)
    out = {}
    for family in (_native, _rle, _lossless, _jpeg_ls, _dct, _jpeg2000, _frames, _lies):
        out.update(family(grey, colour))
    bare = out["implicit"]
    out.update(fuzz_header.seeds())
    out["no file meta"] = bare[bare.index(b"\x08\x00\x16\x00") :]
    return out


if __name__ == "__main__":
    for name, content in seeds().items():
        print(name, len(content), pydicom.dcmread(BytesIO(content), force=True).get("Rows"))
