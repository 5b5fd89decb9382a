"""Images per second of every stage of a training, and what part of it the networks alone would take.

    python scripts/benchmark_training.py [--config mri/demo] [--config mri/r4] [--size 32 32] [--coils 8] [--batch 32]
    python scripts/benchmark_training.py --config natural/ffhq_noise_02 --levers fp32 bf16 bf16,channels_last bf16,compile

Random data and fresh weights: how long a step takes does not depend on them. The floor of a stage is the time of the forward and backward
passes of its networks on inputs of the same shapes, measured in turns with it; its share is the floor over the stage. What else a
teacher's step does stands in rows of its own. FLOPs are
counted, and set beside the rate of a large matrix product on the same device in the same precision. --levers measures several ways of
computing one after the other, each alone or joined by commas. Writes JSON with --json.

Memory is the most that a stage takes, with what stays of all stages (five networks, the optimisers' moments): of a GPU what is allocated,
of a CPU (Linux) what the process holds.
"""

import argparse
import dataclasses
import itertools
import json
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from rsdmri.checkpoints import Description
from rsdmri.compute import arranged
from rsdmri.config import ComputeConfig, Experiment
from rsdmri.denoiser import Denoiser, Generator
from rsdmri.distillation import Distiller
from rsdmri.domain import Law, Size
from rsdmri.mri.config import MRIExperiment
from rsdmri.mri.domain import Bank, MRILaw
from rsdmri.objectives import build_objective
from rsdmri.observations import Observation, observe
from rsdmri.operators import MaskedOperator
from rsdmri.runs import device_of
from rsdmri.sampling import SAMPLERS, levels
from rsdmri.settings import load_experiment
from rsdmri.steps import DistillStep, PretrainStep
from rsdmri.teachers import copied
from rsdmri.tensors import make_generator, randn, squared
from rsdmri.training import Average, descend
from rsdmri_natural.config import NaturalExperiment
from rsdmri_natural.domain import law_of

COUNT = 64  # scans of the data
DRAWS = 32  # coil maps of the bank
PRODUCT = {"cpu": 2048, "cuda": 8192}  # side of the matrices whose product measures the device
LEVERS: Mapping[str, Mapping[str, Any]] = {
    "fp32": {"precision": "fp32"},
    "bf16": {"precision": "bf16"},
    "channels_last": {"channels_last": True},
    "compile": {"compile": "default"},
    "graphs": {"compile": "graphs"},
    "checkpointing": {},  # of every network
    "scores": {},  # of the two scores in the generator's step alone
}


class Data:
    """Random observations, held in memory."""

    def __init__(self, law: Law, size: Size, channels: int, dtype: torch.dtype) -> None:
        operator, noise_std = law.draw(COUNT, size, make_generator(1))
        x = randn((COUNT, channels, *size), dtype, make_generator(2))
        self.all = observe(x, operator, noise_std, make_generator(3))
        self.buckets = {size: range(COUNT)}
        self.names = [f"{number:04d}" for number in range(COUNT)]
        self.the_law = law

    def __len__(self) -> int:
        return COUNT

    def batch(self, indices: Sequence[int]) -> Observation:
        return self.all[[i % COUNT for i in indices]]

    def law(self) -> Law:
        return self.the_law


def random_law(size: Size, coils: int, accel: float, acs: int) -> MRILaw:
    """Random coil maps of unit sum of squares."""
    maps = randn((DRAWS, coils, *size), torch.complex64, make_generator(0))
    maps = maps / maps.abs().square().sum(1, keepdim=True).sqrt()
    return MRILaw({size: Bank(maps, torch.zeros(DRAWS), acs=acs, slices=DRAWS)}, accel=accel, display_max=1.0)


def timed(functions: Sequence[Callable[[], Any]], device: torch.device, repeats: int) -> list[float]:
    """Seconds of one call of each: the median of some, taken in turns, because a machine grows faster or slower on the way."""
    seconds: list[list[float]] = [[] for _ in functions]
    for repeat in range(repeats + 1):
        for function, found in zip(functions, seconds, strict=True):
            _wait(device)
            began = time.perf_counter()
            function()
            _wait(device)
            if repeat > 0:  # the first one pays for set-up
                found.append(time.perf_counter() - began)
    return [statistics.median(found) for found in seconds]


def reset_peak(device: torch.device) -> None:
    """Forgets how much memory was taken at most."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # proc(5): the peak of the resident size


def peak(device: torch.device) -> int:
    """Bytes since then."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    return int(found.group(1)) * 1024 if found else 0


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOPs a second of a product of large matrices."""
    side = PRODUCT[device.type]
    a = torch.randn(side, side, dtype=torch.float32, device=device).to(dtype)
    return 2 * side**3 / timed([lambda: a @ a], device, 5)[0]


class Networks:
    """The passes of the networks alone, on inputs of the stages' shapes."""

    def __init__(self, denoiser: Denoiser, size: Size, batch: int, device: torch.device) -> None:
        channels = denoiser.network.get_submodule("input").weight.shape[1]  # type: ignore[index]
        self.denoiser, self.batch = denoiser, batch
        layout = torch.channels_last if denoiser.channels_last else torch.contiguous_format
        x = torch.randn(batch, int(channels), *size, dtype=torch.float32, device=device)
        self.x = x.to(torch.bfloat16 if denoiser.bf16 else torch.float32, memory_format=layout)
        self.c_noise = torch.zeros(batch, dtype=torch.float32, device=device)

    def forward(self) -> Tensor:
        found: Tensor = self.denoiser.network(self.x, self.c_noise)
        return found

    def train(self) -> None:
        """Forward, and backward to the weights."""
        self.denoiser.zero_grad(set_to_none=True)
        self.forward().square().mean().backward()

    def through(self) -> None:
        """Forward, and backward to the input of a frozen network."""
        self.denoiser.requires_grad_(False)
        x = self.x.clone().requires_grad_(True)
        self.denoiser.network(x, self.c_noise).square().mean().backward()
        self.denoiser.requires_grad_(True)

    @torch.no_grad()
    def sample(self) -> None:
        self.forward()

    def flops(self) -> int:
        """Of one image forward; a training pass is about three times that."""
        with FlopCounterMode(display=False) as counter:
            self.sample()
        return int(counter.get_total_flops()) // self.batch


def measure(experiment: Experiment, law: Law, size: Size, batch: int, repeats: int) -> dict[str, Any]:
    """All stages of one configuration."""
    device = device_of(experiment)
    mri = isinstance(law, MRILaw)
    channels, dtype = (1, torch.complex64) if mri else (3, torch.float32)
    objective = build_objective(experiment.objective, law.thin)
    network, kind = experiment.network, experiment.objective
    described = Description(
        role="teacher", channels=channels, size=size, complex_images=mri, masked=objective.masked, network=network, objective=kind
    )

    def arrange(denoiser: Denoiser) -> Denoiser:
        return arranged(denoiser, experiment.compute, device)

    denoiser = arrange(described.build())
    data = Data(law, size, channels, dtype)
    pretrain = PretrainStep(denoiser, objective, data, dataclasses.replace(experiment.pretrain, batch=batch), 0)
    f_phi = arrange(copied(denoiser, None)).requires_grad_(False).eval()
    f_psi, g = (arrange(copied(denoiser, None)) for _ in range(2))
    distiller = Distiller(f_phi, f_psi, Generator(g, 2.5), objective, dataclasses.replace(experiment.distill, batch=batch))
    distill = DistillStep(distiller, law.to(device), law.thin, channels, dtype, distiller.config)
    parts = {name: getattr(experiment, name).parts for name in ("pretrain", "distill")}
    generators = {name: [make_generator(0, device=device, part=(i, n)) for i in range(n)] for name, n in parts.items()}
    seen = itertools.count(0, batch)  # what was read ahead is then what comes next
    average = Average(denoiser, 1e5, 0.05)
    alone = Networks(arrange(copied(denoiser, None)), size, batch, device)

    def fake() -> None:
        f_psi.requires_grad_(True).train()
        descend(distill.adam_fake, distill._fake_loss, generators["distill"], 1.0, "gradient")

    def generator() -> None:
        f_psi.requires_grad_(False).eval()
        descend(distill.adam_generator, distill._generator_loss, generators["distill"], 1.0, "gradient")

    operator, _ = law.draw(batch, size, make_generator(4))
    operator = operator.to(device)
    thinned = law.thin(operator, make_generator(5, device=device)) if isinstance(operator, MaskedOperator) else operator
    noise = torch.randn(batch, channels, *size, dtype=torch.complex128 if mri else torch.float64, device=device)
    sigmas = levels(experiment.sample.steps, 0.02, 80.0, 7.0).to(device)
    calls = 2 * experiment.sample.steps - 1

    @torch.no_grad()
    def generated(z: Tensor) -> Tensor:
        return distiller.generate(z, thinned)

    @torch.no_grad()
    def teacher_images() -> None:
        SAMPLERS["heun"](lambda x, sigma: f_phi.denoise(x, sigma, thinned), noise, sigmas, 0.0)

    # Each with the passes of the networks that it cannot do without.
    stages: Mapping[str, tuple[Callable[[], Any], Sequence[Callable[[], Any]]]] = {
        "data": (lambda: data.batch(range(batch)).to(device), ()),
        "teacher step": (lambda: pretrain(next(seen), generators["pretrain"]), [alone.train]),
        "fake step": (fake, [alone.sample, alone.train]),
        "generator step": (generator, [alone.train, alone.through, alone.through]),
        "average of weights": (lambda: average.update(denoiser, 1000, batch), ()),
        "teacher's images": (teacher_images, calls * [alone.sample]),
        "generator's images": (lambda: generated(noise.to(dtype)), [alone.sample]),
    }
    rows = {}
    for name, (function, passes) in stages.items():
        reset_peak(device)
        function()
        memory = peak(device)
        seconds, *floors = timed([function, *passes], device, repeats)
        rows[name] = _row(seconds, sum(floors), batch, memory)
        print(f"  {name}: {batch / seconds:.3g} images/s", file=sys.stderr, flush=True)
    # Last, because they keep a batch.
    for name, function in _beside_the_network(
        pretrain, data.batch(range(batch)).to(device), make_generator(0, device=device)
    ).items():
        rows[name] = _row(timed([function], device, repeats)[0], 0.0, batch, 0)
    (train,) = timed([alone.train], device, repeats)
    flops = Networks(copied(denoiser, None), size, 1, device).flops()  # a copy, which is never compiled
    rate = matrix_rate(device, torch.bfloat16 if denoiser.bf16 else torch.float32)
    return {
        "size": size,
        "coils": law.banks[size].maps.shape[1] if isinstance(law, MRILaw) else None,
        "precision": "bf16" if denoiser.bf16 else "fp32",
        "batch": batch,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "parameters": sum(p.numel() for p in denoiser.parameters()),
        "forward_flops_an_image": flops,
        "matrix_product_flops_a_second": rate,
        "training_pass_share_of_the_matrix_rate": 3 * flops * batch / train / rate,
        "peak_memory_bytes": max(row["peak_memory_bytes"] or 0 for row in rows.values()),
        "stages": rows,
    }


def _beside_the_network(step: PretrainStep, obs: Observation, generator: torch.Generator) -> Mapping[str, Callable[[], Any]]:
    """What else a teacher's step does."""
    objective, network = step.objective, step.model
    sigma = objective.levels(obs.noise_std, generator)
    perturbed = objective.perturb(obs, sigma, generator)
    x = torch.zeros_like(perturbed.x_t).requires_grad_(True)
    return {
        "(teacher: perturbation)": lambda: objective.perturb(obs, sigma, generator),
        "(teacher: target)": lambda: objective.target(perturbed, obs),
        "(teacher: A^H A and back)": lambda: torch.autograd.grad(squared(obs.operator.gram(x)).sum(), x),
        "(teacher: Adam)": step.optimizer.step,
        "(teacher: clipping)": lambda: torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0),
    }


def _row(seconds: float, floor: float, batch: int, memory: int) -> dict[str, float | None]:
    return {
        "seconds": seconds,
        "images_a_second": batch / seconds,
        "floor_seconds": floor or None,
        "share": floor / seconds if floor else None,
        "peak_memory_bytes": memory,
    }


def table(found: Mapping[str, Any]) -> str:
    """For a terminal, and for docs/performance.md."""
    coils = f"{found['coils']} coils, " if found["coils"] else ""
    lines = [
        f"{found['device']}, torch {found['torch']}, {found['lever']}: {found['size'][0]} x {found['size'][1]},"
        f" {coils}batch {found['batch']};"
        f" {found['parameters'] / 1e6:.2f} M parameters, {found['forward_flops_an_image'] / 1e9:.3g} GFLOP forward an image;",
        f"a training pass at {100 * found['training_pass_share_of_the_matrix_rate']:.0f} % of a matrix product's"
        f" {found['matrix_product_flops_a_second'] / 1e9:.0f} GFLOP/s; memory at most {found['peak_memory_bytes'] / 2**30:.2f} GiB",
        "",
        "| stage | ms | images/s | networks alone, ms | share | GiB |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in found["stages"].items():
        floor = "-" if row["floor_seconds"] is None else f"{1e3 * row['floor_seconds']:.1f}"
        share = "-" if row["share"] is None else f"{100 * row['share']:.0f} %"
        memory = f"{row['peak_memory_bytes'] / 2**30:.2f}" if row["peak_memory_bytes"] else "-"
        lines.append(f"| {name} | {1e3 * row['seconds']:.1f} | {row['images_a_second']:.3g} | {floor} | {share} | {memory} |")
    return "\n".join(lines)


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config", action="append", default=[], help="a named configuration or a file; several apply in their order"
    )
    parser.add_argument("--size", type=int, nargs=2, default=(32, 32), help="of MRI; photographs have that of the configuration")
    parser.add_argument("--coils", type=int, default=8)
    parser.add_argument(
        "--levers",
        nargs="+",
        default=[],
        metavar="A,B",
        help=f"ways of computing, of {', '.join(LEVERS)}; default: the configuration's",
    )
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, help="where the numbers go")
    options = parser.parse_args()
    unknown = {name for lever in options.levers for name in lever.split(",")} - LEVERS.keys()
    if unknown:
        parser.error(f"--levers: no {', '.join(sorted(unknown))}; there are {', '.join(LEVERS)}")
    named = options.config or ["mri/demo"]
    kind: type[Experiment] = NaturalExperiment if named[0].startswith("natural/") else MRIExperiment
    experiment = dataclasses.replace(load_experiment(kind, named), device=options.device)
    if isinstance(experiment, NaturalExperiment):
        law: Law = law_of(experiment.data)
        size = experiment.data.image_size
    else:
        assert isinstance(experiment, MRIExperiment)
        size = (options.size[0], options.size[1])
        law = random_law(size, options.coils, experiment.data.accel, experiment.data.acs or max(2, round(size[1] / 16)))
    results = []
    for lever in options.levers or ["as configured"]:
        try:
            found = measure(with_lever(experiment, lever), law, size, options.batch, options.repeats)
        except Exception as error:  # one way that fails, in a compiler or for want of memory, does not end the others
            if not options.levers:
                raise
            print(f"{lever}: {type(error).__name__}: {str(error)[:300]}", file=sys.stderr, flush=True)
            results.append({"lever": lever, "error": f"{type(error).__name__}: {error}"})
        else:
            results.append({"lever": lever, **found})
            print(table(results[-1]), flush=True)
        if options.json:
            options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0


def with_lever(experiment: Experiment, lever: str) -> Experiment:
    """The experiment computed as a lever says; without one, as it says itself."""
    if lever == "as configured":
        return experiment
    torch._dynamo.reset()  # nothing that is compiled serves two levers
    names = lever.split(",")
    fields: dict[str, Any] = {}
    for name in names:
        fields |= LEVERS[name]
    network = dataclasses.replace(experiment.network, checkpointing=experiment.network.checkpointing or "checkpointing" in names)
    distill = dataclasses.replace(experiment.distill, checkpointing=experiment.distill.checkpointing or "scores" in names)
    compute = ComputeConfig(**{"precision": "fp32", **fields})
    return dataclasses.replace(experiment, compute=compute, network=network, distill=distill)


if __name__ == "__main__":
    sys.exit(main())
