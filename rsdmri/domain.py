"""What an application must provide: its data, its corruption, and how an image is shown.

``rsdmri.mri.domain`` and ``rsdmri_natural.domain`` are the two applications; the pipeline knows no other thing about them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from .observations import Observation
from .operators import LinearOperator, MaskedOperator
from .tensors import Image, PerSample

Size: TypeAlias = tuple[int, int]  # rows and columns of an image


class Law(Protocol):
    """The data's law of corruption: operators and noise, and nothing about images."""

    @property
    def operator(self) -> type[LinearOperator]:
        """The kind of its operators, which decides what objectives can learn from them."""
        ...

    @property
    def sizes(self) -> Mapping[Size, int]:
        """The sizes of the images, the most frequent first, and how many the data have of each."""
        ...

    def draw(self, n: int, size: Size, generator: torch.Generator) -> tuple[LinearOperator, PerSample]:
        """n independent operators for images of one size, on the device of ``generator``, and their noise (n,)."""
        ...

    def rescan(self, operator: Any, generator: torch.Generator) -> LinearOperator:
        """The same objects measured again: what belongs to them (coil maps) stays, what the protocol draws (masks) is new."""
        ...

    def thin(self, operator: MaskedOperator, generator: torch.Generator | None) -> MaskedOperator:
        """The further corrupted operator Ã: a part of the mask, drawn by the data's further corrupted law."""
        ...

    def save(self, path: Path) -> None:
        """Writes operators.h5, so that a run samples without the data."""
        ...

    def to(self, device: torch.device) -> "Law":
        """The law with what it draws from on a device: the one of the generators that it will be given, for speed alone."""
        ...


class Observations(Protocol):
    """The corrupted data set."""

    def __len__(self) -> int: ...

    @property
    def names(self) -> list[str]:
        """The name of every sample."""
        ...

    @property
    def buckets(self) -> Mapping[Size, Sequence[int]]:
        """The samples of each size, the most frequent size first: it is the one that is sampled and evaluated."""
        ...

    def batch(self, indices: Sequence[int]) -> Observation:
        """The observations of these samples, all of one size, on the CPU."""
        ...

    def law(self) -> Law:
        """How these data were corrupted."""
        ...


class Domain(Protocol):
    """One application of the engine."""

    #: How its commands begin: "rsdmri-" before the verb.
    program: str
    channels: int
    complex_images: bool

    def prepare(self, experiment: Any, out: Path) -> None:
        """Data -> out/observations.h5 and, where clean images exist, out/references.h5."""
        ...

    def observations(self, path: Path, experiment: Any) -> Observations:
        """Opens observations.h5."""
        ...

    def references(self, path: Path, size: Size) -> tuple[Image, list[str]]:
        """The clean images of one size in references.h5 and their names: what ``evaluate`` compares with, and, of other data than those
        that are learned from, what ``em`` begins with."""
        ...

    def check_scale(self, references: Path, experiment: Any, size: Size) -> None:
        """A :class:`UserError` unless clean images of one size have the scale that the experiment's data have."""
        ...

    def law(self, path: Path, experiment: Any = None) -> Law:
        """Opens operators.h5; a :class:`UserError` if ``experiment`` is given and asks for another corruption."""
        ...

    def configured_law(self, experiment: Any) -> Law:
        """The law that a configuration describes, for networks that were trained elsewhere; it may need the prepared data."""
        ...

    def law_needs_data(self, experiment: Any) -> bool:
        """Whether it does."""
        ...

    def volume_of(self, name: str) -> str:
        """Whose image a sample is: of a slice the scan, of a photograph itself."""
        ...

    def corruption(self, experiment: Any) -> dict[str, Any]:
        """The options that say how the data were corrupted, for people; None where there is nothing to say."""
        ...

    def restoration(self, experiment: Any) -> dict[str, Any]:
        """The options on which images depend that are made of observations without a learned prior; a :class:`UserError` where none are."""
        ...

    def restorer(self, data: Any, experiment: Any, device: torch.device) -> tuple[Any, dict[str, Any]]:
        """What makes them, (Observation, indices) -> images; and what was chosen for that, for people."""
        ...

    def values(self, law: Law) -> dict[str, Any]:
        """How values become display values: what has to be the same for numbers that are compared."""
        ...

    def display(self, x: Image, law: Law) -> Tensor:
        """Images as a person or a metric sees them: (N, H, W) or (N, H, W, 3) in [0, 1], 8-bit steps, the same for every row."""
        ...
