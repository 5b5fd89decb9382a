"""Observations read ahead: while one batch is computed, a thread reads the next."""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from .domain import Observations
from .observations import Observation


class Ahead:
    """Batches of a data set in the order that was told, read by a thread into memory from which a GPU copies by itself."""

    def __init__(self, data: Observations) -> None:
        self.data = data
        self.reader = ThreadPoolExecutor(1, "read-ahead")
        self.waiting: deque[tuple[list[int], Future[Observation]]] = deque()

    def order(self, batches: Sequence[Sequence[int]]) -> None:
        """The samples of the next batches, one after the other; what was ordered before and is still the same is not read again."""
        wanted = [list(batch) for batch in batches]
        if [samples for samples, _ in self.waiting] != wanted[: len(self.waiting)]:
            self.waiting.clear()
        for samples in wanted[len(self.waiting) :]:
            self.waiting.append((samples, self.reader.submit(self._read, samples)))

    def next(self, device: torch.device) -> Observation:
        """The first batch that was ordered and not yet taken."""
        _, future = self.waiting.popleft()
        obs = future.result()
        return obs.map(lambda tensor: tensor.to(device, non_blocking=True))

    def _read(self, samples: list[int]) -> Observation:
        obs = self.data.batch(samples)
        return obs.map(lambda tensor: tensor.pin_memory()) if torch.cuda.is_available() else obs
