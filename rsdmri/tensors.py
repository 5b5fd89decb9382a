r"""Records of tensors, and the conventions that every other module relies on.

Shapes: image ``(B, C, H, W)``; k-space and maps ``(B, coils, H, W)``; one value a sample ``(B,)``.

Complex tensors are used everywhere outside the networks; :func:`to_channels` and :func:`to_complex` are the only border.
Noise has unit variance *per real component*, so that a complex draw has twice the variance of ``torch.randn`` of a complex
dtype; :func:`randn_like` is the only function that draws it.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Self, TypeAlias

import numpy as np
import torch
from torch import Tensor

Image: TypeAlias = Tensor  # (B, C, H, W), real or complex
PerSample: TypeAlias = Tensor  # (B,), real


class Batch:
    """A frozen record of tensors with a leading batch axis.

    Subclasses are frozen dataclasses; a field is a tensor, another record, ``None``, or a number that all samples share. A record is
    data: it is moved, indexed and joined as a whole and never changed.
    """

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The record with ``function`` applied to every tensor in it."""
        changes: dict[str, Any] = {}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, Batch):
                changes[field.name] = value.map(function)
            elif isinstance(value, Tensor):
                changes[field.name] = function(value)
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]

    def tensors(self) -> list[Tensor]:
        """Every tensor of the record, depth first."""
        found: list[Tensor] = []
        self.map(lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
        return found

    def to(self, device: torch.device | str) -> Self:
        """The record on another device."""
        return self.map(lambda tensor: tensor.to(device))

    def __getitem__(self, index: Any) -> Self:
        """The samples that a slice, a list of indices or an index tensor selects; the batch axis stays."""
        if isinstance(index, int):
            index = [index]
        return self.map(lambda tensor: tensor[index])

    def __len__(self) -> int:
        return len(self.tensors()[0])

    @classmethod
    def cat(cls, records: Sequence[Self]) -> Self:
        """Joins records along the batch axis."""
        columns = zip(*(record.tensors() for record in records), strict=True)
        joined = iter([torch.cat(column) for column in columns])
        return records[0].map(lambda _: next(joined))


def randn_like(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal noise in the shape of ``x``, of unit variance per real component (method: "complex noise")."""
    real = torch.view_as_real(x) if x.is_complex() else x

    def draw(shape: Sequence[int]) -> Tensor:
        return torch.randn(shape, dtype=real.dtype, device=x.device, generator=generator)

    noise = _part(draw, real.shape, generator)
    return torch.view_as_complex(noise) if x.is_complex() else noise


def randn(shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator | None = None) -> Tensor:
    """Noise of :func:`randn_like` in a given shape, on the device of ``generator``."""
    device = generator.device if generator is not None else None
    return randn_like(torch.empty(tuple(shape), dtype=dtype, device=device), generator)


def rand(
    shape: Sequence[int], generator: torch.Generator | None, like: Tensor | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Numbers in [0, 1) in a shape whose first axis is the batch, on the device of ``like`` or else of ``generator``."""
    device = like.device if like is not None else generator.device if generator is not None else None
    return _part(lambda size: torch.rand(size, dtype=dtype, device=device, generator=generator), shape, generator)


def randint(high: int, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Numbers below ``high`` in a shape whose first axis is the batch, on the device of ``generator``."""
    return _part(lambda size: torch.randint(high, size, device=generator.device, generator=generator), shape, generator)


class PartGenerator(torch.Generator):
    """A generator for one of several parts of a batch, which are computed one after the other or by several processes.

    :func:`randn_like`, :func:`rand` and :func:`randint` draw for the whole batch and keep this part: together the parts are the batch that
    one generator would have drawn, number for number. What is drawn for a batch as a whole is drawn by torch itself.
    """

    number, count = 0, 1


def _part(draw: Callable[[Sequence[int]], Tensor], shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
    number, count = (generator.number, generator.count) if isinstance(generator, PartGenerator) else (0, 1)
    n = shape[0] if len(shape) else 0
    whole = draw((count * n, *shape[1:]) if count > 1 else tuple(shape))
    return whole[number * n : (number + 1) * n] if count > 1 else whole


def to_channels(x: Image) -> Tensor:
    """``(B, C, H, W)`` complex to ``(B, 2C, H, W)`` real: all real parts, then all imaginary parts. Real images pass."""
    return torch.cat([x.real, x.imag], dim=1) if x.is_complex() else x


def to_complex(channels: Tensor) -> Image:
    """The inverse of :func:`to_channels` for complex images."""
    real, imag = channels.chunk(2, dim=1)
    return torch.complex(real, imag)


def per_sample(value: PerSample, x: Tensor) -> Tensor:
    """``(B,)`` values shaped to multiply a batch ``x`` of any number of axes."""
    return value.reshape(-1, *[1] * (x.ndim - 1))


def squared(x: Tensor) -> Tensor:
    """``|x|^2`` without the square root of ``abs``, whose gradient at zero is not defined."""
    return x.real.square() + x.imag.square() if x.is_complex() else x.square()


def sum_samples(x: Tensor) -> PerSample:
    """The sum over everything but the batch axis."""
    return x.flatten(1).sum(1)


def number_of(name: str) -> int:
    """64 bits that are a function of a name: the part of a generator's key that belongs to a volume or an image."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def generator_of(mask: Tensor) -> torch.Generator:
    """A generator on the CPU that is a function of a mask: the same M̃ for the same M."""
    return make_generator(0, *np.packbits(mask.numpy().ravel()).tolist())


def make_generator(*key: int, device: torch.device | str = "cpu", part: tuple[int, int] = (0, 1)) -> PartGenerator:
    """A generator whose stream is a function of ``key``, such as (seed, purpose, images seen); for part ``part[0]`` of ``part[1]``."""
    state = np.random.SeedSequence(list(key)).generate_state(2, np.uint32)
    generator = PartGenerator(device)
    generator.number, generator.count = part
    # The top bit is dropped because manual_seed takes a signed 64-bit number.
    generator.manual_seed((int(state[0]) << 31) ^ int(state[1]))
    return generator
