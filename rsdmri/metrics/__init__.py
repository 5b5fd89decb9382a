"""Distances between two sets of images that need no trained network, and hence no download.

:func:`swd` looks at patches, :func:`psd` at spectra. Their values depend on the number of images:
quote them with it, and beside the distance between two halves of the reference, which
:func:`compare` computes at the same number. Neither is a Fréchet inception distance, and neither
is comparable with one.
"""

from .compare import Comparison, compare, halves
from .sliced import swd
from .spectrum import psd, radial_power

__all__ = ["Comparison", "compare", "halves", "psd", "radial_power", "swd"]
