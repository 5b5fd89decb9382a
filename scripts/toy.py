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
from pathlib import Path

import torch
from torch import Tensor, nn

from rsdmri.config import DistillConfig, ObjectiveConfig, PretrainConfig
from rsdmri.denoiser import Denoiser, Generator
from rsdmri.distillation import Distiller
from rsdmri.grids import save_grid
from rsdmri.noise import karras
from rsdmri.objectives import AmbientTweedie
from rsdmri.observations import observe
from rsdmri.operators import Identity
from rsdmri.sampling import heun, levels
from rsdmri.tensors import make_generator
from rsdmri.training import Average, descend

SIGMA = 0.05
POINTS = 20_000  # a panel
PIXELS = 160
REACH = 1.3  # half the width of a panel
TEACHER = PretrainConfig(images=4000 * 512, batch=512, lr=1e-3, ema=100_000)
DISTILL = DistillConfig(images=5000 * 512, batch=512, lr_fake=1e-3, lr_generator=3e-4, sigma_init=2.5, sigma_min=0.01, ema=50_000)


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


def operator(n: int) -> Identity:
    """Nothing but noise."""
    return Identity(torch.zeros(n))


def teach(y: Tensor, noise_std: float, seed: int) -> Denoiser:
    """The teacher of noisy points, by Tweedie's formula for noise of the level that is believed."""
    torch.manual_seed(seed)
    teacher, objective = Denoiser(Points()), AmbientTweedie(ObjectiveConfig(std=1.6))
    adam, average = torch.optim.Adam(teacher.parameters(), lr=TEACHER.lr), Average(teacher, TEACHER.ema, TEACHER.ema_ramp)
    n = TEACHER.batch
    for images in range(0, TEACHER.images, n):
        generator = make_generator(seed, images)
        points = y[torch.randint(len(y), (n,), generator=generator)]
        obs = observe(points, operator(n), torch.zeros(n), generator)
        obs = type(obs)(obs.y, obs.operator, torch.full((n,), noise_std))
        descend(adam, objective.loss(teacher, obs, objective.levels(obs.noise_std, generator), generator).mean(), 1.0)
        average.update(teacher, images + n, n)
    teacher.load_state_dict(average.values)
    return teacher


def distil(teacher: Denoiser, noise_std: float, seed: int) -> Generator:
    """The generator, by the steps of Algorithm 6."""
    fake, g = copy.deepcopy(teacher), Generator(copy.deepcopy(teacher), DISTILL.sigma_init)
    distiller = Distiller(teacher, fake, g, AmbientTweedie(ObjectiveConfig(std=1.6)), DISTILL)
    adam_fake = torch.optim.Adam(fake.parameters(), lr=DISTILL.lr_fake, betas=DISTILL.betas_fake)
    adam = torch.optim.Adam(g.parameters(), lr=DISTILL.lr_generator, betas=DISTILL.betas_generator)
    average, n = Average(g, DISTILL.ema, 0.25), DISTILL.batch
    noise = torch.full((n,), noise_std)
    for images in range(0, DISTILL.images, n):
        generator = make_generator(seed, 1, images)
        fake.requires_grad_(True)
        z, sigma = torch.randn(n, 1, 1, 2, generator=generator), distiller.objective.levels(noise, generator)
        descend(adam_fake, distiller.fake_loss(z, operator(n), operator(n), noise, sigma, generator).mean(), 1.0)
        fake.requires_grad_(False)
        z, u = torch.randn(n, 1, 1, 2, generator=generator), DISTILL.t_max * torch.rand(n, generator=generator)
        sigma = karras(u, DISTILL.sigma_min, DISTILL.sigma_max)
        descend(adam, distiller.generator_loss(z, operator(n), operator(n), noise, sigma, generator).mean(), 1.0)
        average.update(g, images + n, n)
    g.load_state_dict(average.values)
    return g


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
    y = observe(x, operator(POINTS), torch.full((POINTS,), SIGMA), generator).y
    z = torch.randn(POINTS, 1, 1, 2, generator=generator)
    rows: dict[str, Tensor] = {"clean": x, "observations": y}
    generated: dict[str, Tensor] = {}
    for believed in (SIGMA, SIGMA / 2, 1.5 * SIGMA):
        teacher = teach(y, believed, options.seed)
        with torch.no_grad():
            if believed == SIGMA:
                for name, stop in (("teacher, full", 0.0), ("teacher, truncated", SIGMA)):
                    rows[name] = heun(lambda x, s: teacher(x, s), z.double(), levels(18, 0.002, 80.0), stop).float()  # noqa: B023
        g = distil(teacher, believed, options.seed)
        with torch.no_grad():
            generated[f"DSD, sigma taken for {believed:.3f}"] = g(z, operator(POINTS))
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
