"""Distances between two sets of images.

:func:`swd` looks at patches, :func:`psd` at spectra, :func:`phase` at the phase of complex images: they need no trained network, and hence
no download. :func:`frechet`, :func:`kid` and :func:`coverage` compare clouds of features, of the Inception network (then they are FID and
KID) or of any other; ``bands`` are features that need no network. docs/metrics.md says what each of them sees.

Values depend on the number of images, on the features and on how images were made comparable: quote them with these, and beside the distance
between two halves of the reference, which :func:`compare` computes at the same number.
"""

from .compare import HIGHER, METRICS, Comparison, Options, Side, compare, halves
from .coverage import coverage, nearest
from .features import Extractor
from .frechet import Moments, frechet, frechet_of_moments, moments
from .kernel import kid
from .phase import phase, phase_histograms
from .sliced import swd
from .spectrum import psd, radial_power

__all__ = [
    "HIGHER",
    "METRICS",
    "Comparison",
    "Extractor",
    "Moments",
    "Options",
    "Side",
    "compare",
    "coverage",
    "frechet",
    "frechet_of_moments",
    "halves",
    "kid",
    "moments",
    "nearest",
    "phase",
    "phase_histograms",
    "psd",
    "radial_power",
    "swd",
]
