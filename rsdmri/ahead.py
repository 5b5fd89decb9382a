"""Observations read ahead: while a GPU computes one batch, a thread reads the next."""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from .domain import Observations
from .observations import Observation


class Ahead:
    """Batches of a data set in the order that was told.

    ``threaded``, by default on GPUs alone: a thread reads them, into memory from which the GPU copies by itself. On CPUs it would take a
    core from the networks, and its own pool of threads makes every operation of theirs slower.
    """

    def __init__(self, data: Observations, device: torch.device, threaded: bool | None = None) -> None:
        self.data, self.device = data, device
        self.threaded = device.type == "cuda" if threaded is None else threaded
        self.reader = ThreadPoolExecutor(1, "read-ahead")  # it starts no thread before it is needed
        self.waiting: deque[tuple[list[int], Future[Observation] | None]] = deque()

    def order(self, batches: Sequence[Sequence[int]]) -> None:
        """The samples of the next batches, one after the other; what was ordered before and is still the same is not read again."""
        wanted = [list(batch) for batch in batches]
        if [samples for samples, _ in self.waiting] != wanted[: len(self.waiting)]:
            for _, future in self.waiting:
                if future is not None:
                    future.cancel()
            self.waiting.clear()
        for samples in wanted[len(self.waiting) :]:
            self.waiting.append((samples, self.reader.submit(self._read, samples) if self.threaded else None))

    def next(self) -> Observation:
        """The first batch that was ordered and not yet taken, on the device."""
        samples, future = self.waiting.popleft()
        obs = self._read(samples) if future is None else future.result()
        return obs.map(lambda tensor: tensor.to(self.device, non_blocking=True))

    def _read(self, samples: list[int]) -> Observation:
        obs = self.data.batch(samples)
        return obs.map(lambda tensor: tensor.pin_memory()) if self.device.type == "cuda" else obs
