"""One constructor a line: every operator of both packages, on which the mathematical properties are tested."""

import torch

from rsdmri.mri.masks import draw_columns
from rsdmri.mri.operators import MultiCoilMRI
from rsdmri.operators import Identity
from rsdmri_natural.masks import draw_boxes
from rsdmri_natural.operators import Blur, Inpainting, SuperResolution, gaussian_kernel, motion_kernels


def unit_maps(generator, n, coils, height, width):
    """Random maps of unit norm, zero on a part of the grid, as ESPIRiT leaves them."""
    maps = torch.randn(n, coils, height, width, dtype=torch.complex128, generator=generator)
    maps = maps / maps.abs().square().sum(1, keepdim=True).sqrt()
    maps[..., :2, :] = 0
    return maps


def mri(generator, n=3, coils=4, height=10, width=16):
    return MultiCoilMRI(unit_maps(generator, n, coils, height, width), draw_columns(n, width, 4, 2, generator))


def mri_odd(generator):
    return mri(generator, height=9, width=15)


def mri_2d(generator):
    mask = torch.rand(3, 1, 9, 12, generator=generator) < 0.4
    return MultiCoilMRI(unit_maps(generator, 3, 5, 9, 12), mask)


def mri_two_sets(generator):
    """Maps of two sets, orthogonal at every pixel, with odd sizes."""
    basis = torch.linalg.qr(torch.randn(3, 9, 15, 4, 2, dtype=torch.complex128, generator=generator))[0]
    return MultiCoilMRI(basis.permute(0, 4, 3, 1, 2), draw_columns(3, 15, 3, 2, generator))


def inpainting(generator):
    return Inpainting(torch.rand(3, 1, 8, 9, generator=generator) < 0.5)


def box(generator):
    return Inpainting(draw_boxes(3, (8, 9), 4, generator))


def blur(generator):
    return Blur(gaussian_kernel().expand(3, -1, -1))


def blur_truncated(generator):
    return Blur(gaussian_kernel(published=False).expand(3, -1, -1))


def motion(generator):
    return Blur(motion_kernels(3, 9, generator))


def super_resolution(generator, factor=2):
    return SuperResolution(torch.zeros(3), factor)


def super_resolution_4(generator):
    return super_resolution(generator, 4)


def identity(generator):
    return Identity(torch.zeros(3))


# name: (constructor, image shape, complex)
OPERATORS = {
    "mri": (mri, (3, 1, 10, 16), True),
    "mri_odd": (mri_odd, (3, 1, 9, 15), True),
    "mri_2d": (mri_2d, (3, 1, 9, 12), True),
    "mri_two_sets": (mri_two_sets, (3, 2, 9, 15), True),
    "inpainting": (inpainting, (3, 3, 8, 9), False),
    "box": (box, (3, 3, 8, 9), False),
    "blur": (blur, (3, 3, 16, 19), False),
    "blur_truncated": (blur_truncated, (3, 3, 17, 16), False),
    "motion": (motion, (3, 2, 16, 17), False),
    "super_resolution": (super_resolution, (3, 3, 8, 12), False),
    "super_resolution_4": (super_resolution_4, (3, 3, 12, 8), False),
    "identity": (identity, (3, 3, 8, 8), False),
}
# Of the others the norm is at most one; reflected edges raise it.
NORMS = {"blur": 1.03, "blur_truncated": 1.03, "motion": 1.06}
