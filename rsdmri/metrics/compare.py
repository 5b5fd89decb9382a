"""Several distances at once, each beside what chance alone would give."""

from typing import TypedDict

import numpy as np
import torch

from ..errors import UserError
from ..tensors import make_generator
from .sliced import ImageSet, Indices, swd
from .spectrum import psd

MIN_IMAGES = 16  # a side: with fewer, two halves of one set differ as much as anything else


class Comparison(TypedDict):
    """One distance; the same between two halves of the reference; the images a side."""

    value: float
    floor: float
    n: int


def compare(samples: ImageSet, reference: ImageSet, other_reference: ImageSet, *, seed: int = 0) -> dict[str, Comparison]:
    """The distances ``swd`` and ``psd`` from ``samples`` to ``reference``.

    ``floor`` is the distance from ``other_reference`` to ``reference``, two disjoint parts of one
    distribution (see :func:`halves`): a perfect generator scores about this.

    Raises:
        UserError: the sets differ in number or shape, or hold anything but finite real images.
    """
    n = len(reference)
    return {
        "swd": {
            "value": swd(samples, reference, seed=seed),
            "floor": swd(other_reference, reference, seed=seed),
            "n": n,
        },
        "psd": {"value": psd(samples, reference), "floor": psd(other_reference, reference), "n": n},
    }


def halves(n_reference: int, n_samples: int, limit: int = 0, *, seed: int = 0) -> tuple[int, Indices, Indices]:
    """How many images a side can be compared, and two disjoint random parts of the reference.

    Args:
        n_reference: images of the reference, which has to yield both parts.
        n_samples: images to be compared with it.
        limit: at most so many a side; 0 for no limit.

    Returns:
        n, and the indices of the two parts of n images, each in rising order (as HDF5 needs them).

    Raises:
        UserError: fewer than 16 images a side.
    """
    n = min(n_samples, n_reference // 2, limit if limit > 0 else n_samples)
    if n < MIN_IMAGES:
        limited = f" (limited to {limit})" if limit > 0 else ""
        raise UserError(
            f"{n_samples} samples and {n_reference} reference images{limited} leave {n} a side;"
            f" at least {MIN_IMAGES} samples and {2 * MIN_IMAGES} reference images are needed"
        )
    order = torch.randperm(n_reference, generator=make_generator(seed)).numpy()
    return n, np.sort(order[:n]), np.sort(order[n : 2 * n])
