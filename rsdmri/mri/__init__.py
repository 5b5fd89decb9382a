"""Multi-coil MRI: reading scans, coil maps, and the operator that measures images.

scan = rsdmri.mri.read("file1000001.h5")             # scan.kspace (slices, coils, H, W), scan.mask
maps, eigenvalues, valid = rsdmri.mri.espirit(scan.kspace, mask=scan.mask)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .coils import espirit
    from .fourier import fft2c, ifft2c
    from .operators import MultiCoilMRI, combine
    from .readers import KSpace, read
    from .reconstruction import l1_wavelet, sense

_PLACES = {
    "KSpace": "readers",
    "MultiCoilMRI": "operators",
    "combine": "operators",
    "espirit": "coils",
    "fft2c": "fourier",
    "ifft2c": "fourier",
    "l1_wavelet": "reconstruction",
    "read": "readers",
    "sense": "reconstruction",
}

__all__ = ["KSpace", "MultiCoilMRI", "combine", "espirit", "fft2c", "ifft2c", "l1_wavelet", "read", "sense"]


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(import_module(f".{_PLACES[name]}", __name__), name)
    raise AttributeError(f"module 'rsdmri.mri' has no attribute '{name}'")
