"""Reconstructed volumes for people: fastMRI's HDF5, NIfTI, and DICOM secondary captures.

Nothing about a patient is read or written. Files of k-space say voxels at best, and never where the head lay: NIfTI files say that they
have no orientation (codes 0), and DICOM files have no position.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from ..files import atomic

Voxel = tuple[float, float, float]  # millimetres along rows' direction (H), columns' (W), and the slice
UID_ROOT = "rsdmri"


def write_reconstruction(path: Path, volume: NDArray[np.float32], attributes: Mapping[str, Any]) -> None:
    """``reconstruction`` float32 (slices, h, w), as fastMRI's leaderboard takes it, and how it was made."""
    with atomic(path) as temporary, h5py.File(temporary, "w") as file:
        file["reconstruction"] = volume
        file.attrs.update(attributes)


def write_nifti(path: Path, volume: NDArray[np.float32], voxel: Voxel | None) -> None:
    """A volume (slices, h, w) as NIfTI, the first row of each slice on top."""
    nibabel = needed("nibabel", path)
    down, right, through = voxel or (1.0, 1.0, 1.0)
    image = nibabel.Nifti1Image(volume.transpose(2, 1, 0)[:, ::-1], None)  # no affine: both codes are 0
    image.header.set_zooms((right, down, through))
    image.header.set_xyzt_units("mm" if voxel else "unknown")
    image.header["descrip"] = b"rsdmri; no orientation" if voxel else b"rsdmri; no orientation, no voxel size"
    with atomic(path) as temporary:
        temporary.write_bytes(_gzipped(image.to_bytes()))


def write_dicom(folder: Path, volume: NDArray[np.float32], voxel: Voxel | None, made: str, source: str) -> None:
    """A volume (slices, h, w) as DICOM secondary captures ``0001.dcm``, ...; their UIDs are a function of ``source``, all that made them."""
    needed("pydicom", folder)
    folder.mkdir(parents=True, exist_ok=True)
    top = float(volume.max()) or 1.0
    for number, image in enumerate(volume, 1):
        pixels = np.round(image / top * np.iinfo(np.uint16).max).astype("<u2")
        with atomic(folder / f"{number:04d}.dcm") as temporary:
            _secondary_capture(pixels, top, number, voxel, made, source).save_as(temporary, enforce_file_format=True)


def _secondary_capture(pixels: NDArray[np.uint16], top: float, number: int, voxel: Voxel | None, made: str, source: str) -> Any:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    def uid(*parts: str) -> str:
        return str(generate_uid(entropy_srcs=[UID_ROOT, source, *parts]))

    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = SecondaryCaptureImageStorage, uid("image", str(number))
    data.file_meta.MediaStorageSOPClassUID, data.file_meta.MediaStorageSOPInstanceUID = data.SOPClassUID, data.SOPInstanceUID
    data.StudyInstanceUID, data.SeriesInstanceUID = uid("study"), uid("series")
    data.PatientName = data.PatientID = data.PatientBirthDate = data.PatientSex = ""
    data.StudyDate = data.StudyTime = data.AccessionNumber = data.StudyID = data.ReferringPhysicianName = ""
    data.Modality, data.ConversionType, data.Manufacturer = "MR", "WSD", "rsdmri"
    data.ImageType = ["DERIVED", "SECONDARY"]
    data.DerivationDescription = f"{made}; research use only"[:1024]
    data.SeriesNumber, data.InstanceNumber = 1, number
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 0
    # Slope and intercept bring the scale of the reconstruction back.
    data.RescaleSlope, data.RescaleIntercept, data.RescaleType = f"{top / 65535:.8g}", "0", "US"
    if voxel is not None:
        data.PixelSpacing = [f"{voxel[0]:.6g}", f"{voxel[1]:.6g}"]
        data.SliceThickness = f"{voxel[2]:.6g}"
    data.PixelData = pixels.tobytes()
    return data


def needed(package: str, path: Path) -> Any:
    """A package of the extra [io]."""
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(f"{path}: {package} is needed to write it: pip install 'rsdmri[io]'") from None


def _gzipped(content: bytes) -> bytes:
    import gzip

    return gzip.compress(content, mtime=0)  # the same file for the same volume
