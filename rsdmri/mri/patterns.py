r"""Other patterns than columns at random: equispaced columns, Poisson discs, and the masks of the fastMRI package.

Every pattern but fastMRI's has exactly floor(W / R) columns (floor(H W / R) samples), the ACS among them; all are functions of a volume's
name. fastMRI's masks are those of ``fastmri.data.subsample`` 0.3, bit by bit, for comparisons with published results: their number of columns
is left to chance (random) or to rounding (equispaced), and so is the R that is achieved.
"""

import math

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..tensors import make_generator, number_of
from .masks import acs_lines, check_acceleration, columns

PATTERN_STREAM = 9  # the purpose of the generators that draw these
TRIES = 12  # bisections for the density of Poisson discs


def _generator(name: str, seed: int) -> torch.Generator:
    return make_generator(seed, PATTERN_STREAM, number_of(name))


def equispaced_columns(
    name: str, width: int, acceleration: float, acs: int, seed: int = 0, encoded: Tensor | None = None
) -> Tensor:
    """The mask (W,) of a volume: the ACS lines, and others evenly among the columns beside them, from a random first one on.

    Spacings differ by one where the columns do not divide: the number is what is exact.
    """
    inside = torch.ones(width, dtype=torch.bool) if encoded is None else encoded
    acquired = int(inside.sum())
    check_acceleration(acquired, acceleration, acs, thinned=False)
    mask = torch.zeros(width, dtype=torch.bool)
    mask[acs_lines(width, acs)] = True
    beside = (inside & ~mask).nonzero().flatten()
    count = columns(acquired, acceleration) - acs
    if count > 0:
        start = torch.rand((), dtype=torch.float64, generator=_generator(name, seed))
        places = ((torch.arange(count, dtype=torch.float64) + start) * (len(beside) / count)).floor().long()
        mask[beside[places.clamp(max=len(beside) - 1)]] = True
    return mask


def poisson_disc(name: str, size: tuple[int, int], acceleration: float, acs: int, seed: int = 0) -> Tensor:
    """The mask (H, W) of a volume: a fully sampled central block of acs x acs, and samples that keep a distance from each other.

    The distance grows linearly from the centre (variable density); its slope is chosen so that about floor(H W / R) samples fit, and a few
    random ones are added or removed to make it exactly so many.
    """
    height, width = size
    wanted = math.floor(height * width / acceleration + 1e-9)
    block = torch.zeros(size, dtype=torch.bool)
    block[acs_lines(height, acs), acs_lines(width, acs)] = True
    if acceleration < 1 or not int(block.sum()) <= wanted:
        most = height * width / max(int(block.sum()), 1)
        found = f"a matrix of {height} x {width} and {acs} x {acs} ACS"
        raise UserError(f"acceleration {acceleration:g} is impossible with {found}: R can be 1 to {most:.3g}.")
    generator = _generator(name, seed)
    order = torch.randperm(height * width, generator=generator).numpy()
    low, high = 0.0, 4.0 * math.sqrt(acceleration)
    taken = np.zeros(size, bool)
    for _ in range(TRIES):
        slope = (low + high) / 2
        taken = _discs(order, size, slope, block.numpy())
        low, high = (slope, high) if int(taken.sum()) > wanted else (low, slope)
    return _exactly(torch.from_numpy(taken), block, wanted, torch.from_numpy(order))


def _discs(order: np.ndarray, size: tuple[int, int], slope: float, block: np.ndarray) -> np.ndarray:
    """Samples taken in a random order where none lies within the distance that holds there, and the block."""
    height, width = size
    y, x = np.mgrid[:height, :width]
    distance = slope * np.hypot((y - height // 2) / height, (x - width // 2) / width) * 2
    taken, blocked = block.copy(), block.copy()
    for place in order:
        row, column = divmod(int(place), width)
        if blocked[row, column]:
            continue
        taken[row, column] = True
        radius = distance[row, column]
        reach = int(radius)
        rows, cols = slice(max(row - reach, 0), row + reach + 1), slice(max(column - reach, 0), column + reach + 1)
        blocked[rows, cols] |= np.hypot(y[rows, cols] - row, x[rows, cols] - column) <= radius
    return taken


def _exactly(mask: Tensor, block: Tensor, wanted: int, order: Tensor) -> Tensor:
    """The mask with random samples added, or taken away outside the block, so that ``wanted`` are left."""
    flat, kept = mask.flatten().clone(), block.flatten()
    excess = int(flat.sum()) - wanted
    candidates = order[(flat & ~kept if excess > 0 else ~flat)[order]]
    flat[candidates[: abs(excess)]] = excess < 0
    return flat.reshape(mask.shape)


def fastmri_columns(name: str, width: int, acceleration: float, center_fraction: float, kind: str = "random") -> Tensor:
    """fastMRI's mask (W,) of a file of this name (with its ending), for one pair of acceleration and fraction of central columns.

    ``kind``: random (each column beside the centre with the same probability) or equispaced (its EquispacedMaskFraction).
    """
    random = np.random.RandomState()
    random.seed(tuple(map(ord, name)))
    random.randint(1)  # the choice among one pair draws, too
    central = round(width * center_fraction)
    mask = np.zeros(width, bool)
    start = (width - central + 1) // 2
    if kind == "random":
        probability = (width / acceleration - central) / (width - central)
        if probability <= 0:
            raise UserError(_impossible(width, acceleration, central))
        mask = random.uniform(size=width) < probability
    else:
        spacing = acceleration * (central - width) / (central * acceleration - width) if central * acceleration != width else 0.0
        if spacing < 1:
            raise UserError(_impossible(width, acceleration, central))
        offset = random.randint(0, high=round(spacing))
        mask[np.around(np.arange(offset, width - 1, spacing)).astype(int)] = True
    mask[start : start + central] = True
    return torch.from_numpy(mask)


def _impossible(width: int, acceleration: float, central: int) -> str:
    most = width / central if central else float("inf")
    return f"acceleration {acceleration:g} is impossible with {width} columns and {central} central ones: R must be below {most:.3g}."
