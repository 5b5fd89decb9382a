"""A^H A of multi-coil MRI, 16 coils, 640 x 320: the package's gram against 2-D FFTs, centred by shifts and not.

    python scripts/benchmark_operators.py [--threads 2] [--repeat 10]

In turn in one run, the best of the repetitions; how far the results differ in complex128, odd sizes too. Quote the ratios.
"""

import argparse
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from rsdmri.mri import MultiCoilMRI, combine, fft2c, ifft2c
from rsdmri.mri.masks import draw_columns
from rsdmri.tensors import make_generator, randn


def drawn(size: tuple[int, int], coils: int, dtype: torch.dtype, device: str) -> tuple[MultiCoilMRI, Tensor]:
    """An operator of R = 4 with random maps, and an image."""
    maps = randn((1, coils, *size), dtype, make_generator(0))
    maps = maps / maps.norm(dim=1, keepdim=True)
    mask = draw_columns(1, size[1], 4, round(size[1] / 16), make_generator(1))
    return MultiCoilMRI(maps, mask).to(device), randn((1, 1, *size), dtype, make_generator(2)).to(device)


def shifted(operator: MultiCoilMRI, x: Tensor) -> Tensor:
    """A^H A by centred transforms, forward and back."""
    return combine(operator.maps, ifft2c(torch.where(operator.mask, fft2c(operator.maps * x), 0)))


def unshifted(operator: MultiCoilMRI, x: Tensor) -> Tensor:
    """A^H A by 2-D transforms whose shifts were moved to the mask."""
    mask = torch.fft.ifftshift(operator.mask, dim=-1)
    kspace = torch.fft.fft2(operator.maps * x, norm="ortho")
    return combine(operator.maps, torch.fft.ifft2(kspace * mask, norm="ortho"))


def gram(operator: MultiCoilMRI, x: Tensor) -> Tensor:
    return operator.gram(x)


def main() -> int:
    """Prints the exactness and the table of times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=10)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for size in ((640, 320), (33, 45)):
        operator, x = drawn(size, 16, torch.complex128, "cpu")
        exact = shifted(operator, x)
        difference = float((operator.gram(x) - exact).abs().max() / exact.abs().max())
        print(f"{size[0]} x {size[1]}, complex128: gram differs from centred 2-D transforms by {difference:.1e} relative")
    operator, x = drawn((640, 320), 16, torch.complex64, options.device)
    ways: tuple[Callable[[MultiCoilMRI, Tensor], Tensor], ...] = (gram, unshifted, shifted)
    best = {way.__name__: float("inf") for way in ways}
    for _ in range(options.repeat + 1):
        for way in ways:
            began = time.perf_counter()
            way(operator, x)
            if options.device != "cpu":
                torch.cuda.synchronize()
            best[way.__name__] = min(best[way.__name__], time.perf_counter() - began)
    name = torch.cuda.get_device_name() if options.device != "cpu" else f"CPU, {options.threads} threads"
    print(f"16 x 640 x 320, complex64, {name}:")
    for way in ways:
        print(f"  {way.__name__:<10}{1000 * best[way.__name__]:>8.1f} ms {best[way.__name__] / best['gram']:>6.2f} x gram")
    return 0


if __name__ == "__main__":
    sys.exit(main())
