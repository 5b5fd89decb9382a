"""The two-dimensional toy of DSD (Figures 4 and 6): points on a curve, seen with noise of std 0.05.

    python scripts/toy.py [--out toy.png] [--seed 0]

First row: the clean points, what is learned from, the teacher's samples down to level zero (full), those that stop at the level of the
noise (truncated), and the one-step generator (DSD). Second row: the generator where the noise is taken for half of what it is, for
what it is, and for one and a half times as much. Every panel shows how often points fall into each pixel. Prints the mean distance
from the curve, and how much of the curve is reached.
"""

import argparse
import copy
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rsdmri.config import DistillConfig, ObjectiveConfig, PretrainConfig
from rsdmri.denoiser import Denoiser, Generator
from rsdmri.distillation import Distiller
from rsdmri.domain import Size
from rsdmri.grids import save_grid
from rsdmri.objectives import AmbientTweedie
from rsdmri.observations import Observation, observe
from rsdmri.operators import Identity, MaskedOperator
from rsdmri.sampling import heun, levels
from rsdmri.steps import DistillStep, PretrainStep
from rsdmri.tensors import make_generator
from rsdmri.training import Average

SIGMA = 0.05
POINTS = 20_000  # a panel
PIXELS = 160
REACH = 1.3  # half the width of a panel
OBJECTIVE = AmbientTweedie(ObjectiveConfig(std=1.6))
TEACHER = PretrainConfig(images=4000 * 512, batch=512, lr=1e-3, ema=100_000)
DISTILL = DistillConfig(
    images=5000 * 512, batch=512, lr_fake=1e-3, lr_generator=3e-4, sigma_init=2.5, sigma_min=0.01, ema=50_000, ema_ramp=0.25
)


def curve(t: Tensor) -> Tensor:
    """Points (n, 1, 1, 2) of two interleaved arms of a spiral, t in [0, 1)."""
    arm = (2 * t).floor()
    u = (2 * t - arm).sqrt()  # evenly along the arm
    angle, radius = 1.5 * torch.pi * u + torch.pi * arm, 0.15 + 0.85 * u
    return torch.stack([radius * angle.cos(), radius * angle.sin()], -1)[:, None, None]


class Points(nn.Module):
    """A network on points: (B, 1, 1, 2) and (B,) -> (B, 1, 1, 2)."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.first = nn.Linear(2 + 16, width)
        self.inner = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.last = nn.Linear(width, 2)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        phase = c_noise[:, None] * 2.0 ** torch.arange(8, dtype=x.dtype)
        h = self.first(torch.cat([x.flatten(1), phase.sin(), phase.cos()], 1))
        for layer in self.inner:
            h = h + layer(nn.functional.silu(h))
        return self.last(nn.functional.silu(h)).view_as(x)


@dataclass(frozen=True)
class Noisy:
    """The points and the noise that is believed: data set and law of corruption in one."""

    y: Tensor
    noise_std: float

    sizes: ClassVar = {(1, 2): 1}
    operator: ClassVar = Identity

    @property
    def buckets(self) -> dict[Size, range]:
        return {(1, 2): range(len(self.y))}

    def batch(self, indices: Sequence[int]) -> Observation:
        operator, noise_std = self.draw(len(indices), (1, 2), torch.Generator())
        return Observation(self.y[torch.as_tensor(indices)], operator, noise_std)

    def draw(self, n: int, size: Size, generator: torch.Generator) -> tuple[Identity, Tensor]:
        return Identity(torch.zeros(n)), torch.full((n,), self.noise_std)

    def rescan(self, operator: Identity, generator: torch.Generator) -> Identity:
        return operator


def run(step: Any, options: PretrainConfig | DistillConfig, seed: int) -> dict[str, Tensor]:
    """All steps of a training; the averaged weights."""
    average = Average(step.model, options.ema, options.ema_ramp)
    for images in range(0, options.images, options.batch):
        step(images, [make_generator(seed, images)])
        average.update(step.model, images + options.batch, options.batch)
    return average.values


def teach(data: Any, seed: int) -> Denoiser:
    """The teacher of noisy points, by Tweedie's formula for noise of the level that is believed."""
    torch.manual_seed(seed)
    teacher = Denoiser(Points())
    teacher.load_state_dict(run(PretrainStep(teacher, OBJECTIVE, data, TEACHER, seed), TEACHER, seed))
    return teacher


def distil(teacher: Denoiser, law: Any, seed: int) -> Generator:
    """The generator."""
    g = Generator(copy.deepcopy(teacher), DISTILL.sigma_init)
    distiller = Distiller(teacher, copy.deepcopy(teacher), g, OBJECTIVE, DISTILL)
    g.denoiser.load_state_dict(run(DistillStep(distiller, law, unthinned, 1, torch.float32, DISTILL), DISTILL, seed + 1))
    return g


def unthinned(operator: MaskedOperator, generator: torch.Generator | None) -> MaskedOperator:
    """There is no mask."""
    return operator


def panel(points: Tensor) -> Tensor:
    """How often points fall into each pixel, dark on white."""
    place = ((points[:, 0, 0] / REACH + 1) / 2 * PIXELS).long()
    inside = ((place >= 0) & (place < PIXELS)).all(1)
    index = (PIXELS - 1 - place[inside, 1]) * PIXELS + place[inside, 0]
    counts = torch.bincount(index, minlength=PIXELS**2).view(PIXELS, PIXELS).double()
    return 1 - (counts / 8).clamp(max=1) ** 0.5


def judged(points: Tensor, line: Tensor) -> str:
    """The mean distance from the curve, and how much of the curve has a point within 0.05."""
    distance = torch.cdist(points[:5000, 0, 0], line[:, 0, 0])
    return (
        f"{distance.min(1).values.mean():.4f} from the curve, {(distance.min(0).values < 0.05).double().mean():.0%} of it reached"
    )


def main() -> int:
    """Trains, draws and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("toy.png"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began = time.perf_counter()
    generator = make_generator(options.seed, 2)
    x, line = curve(torch.rand(POINTS, generator=generator)), curve(torch.linspace(0, 1, 1001)[:-1])
    y = observe(x, Identity(torch.zeros(POINTS)), torch.full((POINTS,), SIGMA), generator).y
    z = torch.randn(POINTS, 1, 1, 2, generator=generator)
    rows: dict[str, Tensor] = {"clean": x, "observations": y}
    generated: dict[str, Tensor] = {}
    for believed in (SIGMA, SIGMA / 2, 1.5 * SIGMA):
        data = Noisy(y, believed)
        teacher = teach(data, options.seed)
        with torch.no_grad():
            if believed == SIGMA:
                for name, stop in (("teacher, full", 0.0), ("teacher, truncated", SIGMA)):
                    rows[name] = heun(lambda x, s: teacher(x, s), z.double(), levels(18, 0.002, 80.0), stop).float()  # noqa: B023
        g = distil(teacher, data, options.seed)
        with torch.no_grad():
            generated[f"DSD, sigma taken for {believed:.3f}"] = g(z, Identity(torch.zeros(POINTS)))
    rows["DSD"] = generated[f"DSD, sigma taken for {SIGMA:.3f}"]
    under, over = (generated[f"DSD, sigma taken for {value:.3f}"] for value in (SIGMA / 2, 1.5 * SIGMA))
    blank = torch.ones(PIXELS, PIXELS, dtype=torch.float64)
    panels = [*map(panel, rows.values()), blank, panel(under), panel(rows["DSD"]), panel(over), blank]
    save_grid(options.out, torch.stack(panels).numpy(), 5)
    for name, points in {**rows, **generated}.items():
        print(f"{name:<28} {judged(points, line)}")
    print(f"{options.out}: {time.perf_counter() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
