"""Writes a multi-frame DICOM file (an Enhanced MR object) with pydicom."""

import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, RLELossless

from rle_encoder import encode
from series_writer import SAGITTAL


def item(**elements):
    made = Dataset()
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return made


def write_frames(path, frames, positions, *, echoes=None, slopes=None, components=None, number=1, is_rle=False):
    """An Enhanced MR object of ``frames`` (n, rows, columns) uint16; orientation and spacing are shared."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = RLELossless if is_rle else ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = EnhancedMRImageStorage, f"1.2.3.{number}"
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.Rows, data.Columns, data.NumberOfFrames = frames.shape[1], frames.shape[2], len(frames)
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.SamplesPerPixel, data.PhotometricInterpretation, data.InstanceNumber = 1, "MONOCHROME2", number
    data.SharedFunctionalGroupsSequence = [
        item(
            PixelMeasuresSequence=[item(PixelSpacing=[0.5, 0.7], SliceThickness=4)],
            PlaneOrientationSequence=[item(ImageOrientationPatient=list(SAGITTAL))],
        )
    ]
    data.PerFrameFunctionalGroupsSequence = []
    for index, position in enumerate(positions):
        groups = item(PlanePositionSequence=[item(ImagePositionPatient=list(map(float, position)))])
        if echoes is not None:
            groups.MREchoSequence = [item(EffectiveEchoTime=float(echoes[index]))]
        if components is not None:
            groups.MRImageFrameTypeSequence = [
                item(FrameType=["ORIGINAL", "PRIMARY", "T2", "NONE"], ComplexImageComponent=components[index])
            ]
        if slopes is not None:
            groups.PixelValueTransformationSequence = [
                item(RescaleSlope=slopes[index], RescaleIntercept=0, RescaleType="US")
            ]
        data.PerFrameFunctionalGroupsSequence.append(groups)
    if is_rle:
        data.PixelData = pydicom.encaps.encapsulate([encode(frame) for frame in frames])
        data["PixelData"].VR = "OB"
    else:
        data.PixelData = frames.astype("<u2").tobytes()
    path.parent.mkdir(exist_ok=True, parents=True)
    pydicom.dcmwrite(path, data, enforce_file_format=True)
