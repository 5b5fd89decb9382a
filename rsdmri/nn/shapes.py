"""What the shapes of a U-Net must satisfy; level l works at (H / 2^l, W / 2^l)."""

from torch import Tensor


def check_divisible(x: Tensor, levels: int) -> None:
    """Raise ValueError where x (B, C, H, W) cannot be halved ``levels - 1`` times.

    An odd size would be rounded down on the way, and the skip connections would no longer fit.
    """
    step = 2 ** (levels - 1)
    height, width = x.shape[-2:]
    if height % step or width % step:
        padded = f"{-(-height // step) * step}x{-(-width // step) * step}"
        raise ValueError(
            f"the image is {height}x{width}, but a network of {levels} levels needs a height and "
            f"a width divisible by {step}: pad to {padded}, crop, or use fewer levels"
        )


def group_count(channels: int) -> int:
    """Groups of a group norm: the most that divide ``channels``, at most 32, each of 4 or more."""
    return next((g for g in range(min(32, channels // 4), 0, -1) if channels % g == 0), 1)
