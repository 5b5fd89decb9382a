"""The two things that are trained: a teacher from observations, a generator from the law of corruption.

Both draw their batches themselves, as functions of the images seen and of the generator that the loop gives them. The images of a batch
have one size; sizes come as often as the data have them.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import noise
from .ahead import Ahead
from .compute import adam
from .config import DistillConfig, PretrainConfig
from .consistency import consistency_loss
from .denoiser import Denoiser
from .distillation import Distiller
from .distributed import Replica
from .domain import Law, Observations, Size
from .objectives import Objective, Thin
from .operators import MaskedOperator
from .sharding import load_state
from .tensors import PartGenerator, rand, randn, to_channels
from .training import adam_state, descend, load_adam_state

ORDER_STREAM = 2  # the purpose of the generators that shuffle the data
SIZE_STREAM = 10  # and of those that shuffle the sizes of the batches


def indices(total: int, seed: int, start: int, count: int) -> list[int]:
    """The samples number start .. start + count of an endless sequence of shuffled passes over ``total`` samples.

    A function of its arguments alone, so that a resumed run, on any number of processes, repeats and skips nothing.
    """
    found: list[int] = []
    while len(found) < count:
        epoch, offset = divmod(start + len(found), total)
        order = _order(total, seed, epoch)
        found.extend(int(i) for i in order[offset : offset + count - len(found)])
    return found


@lru_cache(maxsize=8)  # every batch of a pass asks for the same one
def _order(total: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, ORDER_STREAM, epoch]).permutation(total)


def batch_of(buckets: Sequence[Sequence[int]], seed: int, number: int, batch: int) -> Sequence[int]:
    """The samples of batch ``number``: all of one bucket, each bucket's in an endless sequence of shuffled passes.

    Of as many batches as there are samples, each bucket has exactly its share. A function of its arguments alone, too.
    """
    if len(buckets) == 1:
        return [buckets[0][i] for i in indices(len(buckets[0]), seed, number * batch, batch)]
    labels = np.repeat(np.arange(len(buckets)), [len(bucket) for bucket in buckets])
    block, offset = divmod(number, len(labels))
    labels = np.random.default_rng([seed, SIZE_STREAM, block]).permutation(labels)
    bucket = buckets[labels[offset]]
    earlier = block * len(bucket) + int((labels[:offset] == labels[offset]).sum())
    return [bucket[i] for i in indices(len(bucket), seed, earlier * batch, batch)]


def draw_size(sizes: Mapping[Size, int], generator: torch.Generator) -> Size:
    """The size of a batch, drawn as often as the data have it; nothing is drawn where there is but one.

    The host draws it, from the seed of ``generator`` and not from its stream, so that it need not wait for a GPU: what one generator draws
    for has one size.
    """
    if len(sizes) == 1:
        return next(iter(sizes))
    drawn = np.random.default_rng([SIZE_STREAM, generator.initial_seed() % 2**63]).random() * sum(sizes.values())
    return list(sizes)[int(np.searchsorted(np.cumsum(list(sizes.values())), drawn, side="right"))]


def spread(x: Tensor) -> Tensor:
    """How much images (B, C, H, W) differ from each other: the root mean square over pixels of their deviation, per real component.

    Of at least two; without bias, so that the parts of a batch say what the batch says.
    """
    return to_channels(x).var(0, correction=1).mean().sqrt()


class PretrainStep:
    """One step of the teacher: Adam on the objective's loss of one batch of observations."""

    def __init__(
        self,
        denoiser: Denoiser,
        objective: Objective,
        data: Observations,
        config: PretrainConfig,
        seed: int,
        sharded: bool = False,
    ) -> None:
        self.model = denoiser
        self.replica = Replica(denoiser, sharded)
        self.objective, self.data, self.config, self.seed = objective, data, config, seed
        self.optimizer = adam(denoiser.parameters(), config.lr, config.betas)
        self.ahead = Ahead(data, next(denoiser.parameters()).device)

    def __call__(self, images: int, generators: Sequence[PartGenerator]) -> dict[str, Tensor]:
        config = self.config
        self.model.train()
        seen = images + config.batch
        set_rate(self.optimizer, config.lr * rise(seen, config.warmup) * fall(seen, config))
        following = self._parts(seen, generators) if self.ahead.threaded else []
        self.ahead.order(self._parts(images, generators) + following)
        return descend(self.optimizer, self._loss, generators, config.clip, "gradient", self.replica)

    def _parts(self, images: int, generators: Sequence[PartGenerator]) -> list[Sequence[int]]:
        """The samples of the batch after ``images`` images, a part a generator."""
        batch = self.config.batch
        samples = batch_of(list(self.data.buckets.values()), self.seed, images // batch, batch)
        return [samples[part_of(batch, generator)] for generator in generators]

    def _loss(self, generator: PartGenerator) -> tuple[Tensor, dict[str, Tensor]]:
        """Of one part of the batch, the mean over its images; and what the log says of it."""
        obs = self.ahead.next()
        sigma = self.objective.levels(obs.noise_std, generator)
        loss = self.objective.loss(self.model, obs, sigma, generator, augment=self.config.augment).mean()
        values = {"loss": loss}
        weight = self.objective.config.consistency
        if weight > 0:
            values["loss_consistency"] = consistency_loss(self.model, self.objective, obs, sigma, generator).mean()
            loss = loss + weight * values["loss_consistency"]
        return loss, values

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "adam": adam_state(self.optimizer)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        load_state(self.model, state["model"])
        load_adam_state(self.optimizer, state["adam"])


def part_size(batch: int, generator: PartGenerator) -> int:
    """Images of one part of a batch."""
    return batch // generator.count


def part_of(batch: int, generator: PartGenerator) -> slice:
    """The part of a batch that a generator draws for."""
    n = part_size(batch, generator)
    return slice(generator.number * n, (generator.number + 1) * n)


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The learning rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def rise(images: int, warmup: int) -> float:
    """The factor of a learning rate that rises linearly over ``warmup`` images."""
    return min(1.0, images / warmup) if warmup else 1.0


def fall(images: int, config: PretrainConfig | DistillConfig) -> float:
    """The factor of one that falls to zero along a half cosine over the whole training, or stays."""
    return 0.5 * (1 + float(np.cos(np.pi * min(1.0, images / config.images)))) if config.decay else 1.0


class DistillStep:
    """One step of Algorithm 6: Adam on the fake score, then, with fresh z and operators, Adam on the generator."""

    def __init__(
        self,
        distiller: Distiller,
        law: Law,
        thin: Thin,
        channels: int,
        dtype: torch.dtype,
        config: DistillConfig,
        sharded: bool = False,
    ) -> None:
        self.distiller, self.law, self.thin, self.config = distiller, law, thin, config
        self.channels, self.dtype = channels, dtype
        self.model = distiller.generator.denoiser
        self.replica_fake, self.replica = Replica(distiller.fake, sharded), Replica(self.model, sharded)
        self.adam_fake = adam(distiller.fake.parameters(), config.lr_fake, config.betas_fake)
        self.adam_generator = adam(self.model.parameters(), config.lr_generator, config.betas_generator)

    def __call__(self, images: int, generators: Sequence[PartGenerator]) -> dict[str, Tensor]:
        distiller, config = self.distiller, self.config
        seen = images + config.batch
        set_rate(self.adam_fake, config.lr_fake * fall(seen, config))
        set_rate(self.adam_generator, config.lr_generator * fall(seen, config))
        values: dict[str, Tensor] = {}
        # Dropout is active only in a network's own step (SiD).
        if config.divergence != "sds":
            distiller.fake.requires_grad_(True).train()
            self.model.eval()
            values |= descend(self.adam_fake, self._fake_loss, generators, config.clip_fake, "gradient_fake", self.replica_fake)
        distiller.fake.requires_grad_(False).eval()
        self.model.train()
        return values | descend(
            self.adam_generator, self._generator_loss, generators, config.clip_generator, "gradient_generator", self.replica
        )

    def _fake_loss(self, generator: PartGenerator) -> tuple[Tensor, dict[str, Tensor]]:
        """Of one part of the batch, the mean over its images; and what the log says of it."""
        distiller = self.distiller
        z, condition, operator, noise_std = self.draw(part_size(self.config.batch, generator), generator)
        sigma = distiller.objective.levels(noise_std, generator)
        loss = distiller.fake_loss(z, condition, operator, noise_std, sigma, generator).mean()
        return loss, {"loss_fake": loss}

    def _generator_loss(self, generator: PartGenerator) -> tuple[Tensor, dict[str, Tensor]]:
        """The same for the generator; ``spread`` is that of the part's images, and missing where a part is one image."""
        distiller, config = self.distiller, self.config
        n = part_size(config.batch, generator)
        z, condition, operator, noise_std = self.draw(n, generator)
        u = config.t_max * rand((n,), generator, dtype=torch.get_default_dtype())
        sigma = noise.karras(u, config.sigma_min, config.sigma_max)
        x_g = distiller.generate(z, condition)
        loss = distiller.compare(x_g, operator, noise_std, sigma, generator).mean()
        return loss, {"loss_generator": loss} | ({"spread": spread(x_g.detach())} if n > 1 else {})

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Any, Any, Tensor]:
        """Noise, the operator that G is shown, and the operator that measures G's output: never by the mask that G was shown."""
        size = draw_size(self.law.sizes, generator)
        z = randn((n, self.channels, *size), self.dtype, generator)
        condition, noise_std = self.law.draw(n, size, generator)
        if self.config.measured_by == "rescan":
            operator = self.law.rescan(condition, generator)
        else:
            operator, noise_std = self.law.draw(n, size, generator)
        if self.config.noise == "none":
            noise_std = torch.zeros_like(noise_std)
        if self.distiller.generator.denoiser.masked:
            condition = self.thin(cast(MaskedOperator, condition), generator)  # the generator sees what the teacher saw
        return z, condition, operator, noise_std

    def state_dict(self) -> dict[str, Any]:
        return {
            "fake": self.distiller.fake.state_dict(),
            "generator": self.model.state_dict(),
            "adam_fake": adam_state(self.adam_fake),
            "adam_generator": adam_state(self.adam_generator),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        load_state(self.distiller.fake, state["fake"])
        load_state(self.model, state["generator"])
        load_adam_state(self.adam_fake, state["adam_fake"])
        load_adam_state(self.adam_generator, state["adam_generator"])
