"""Slices of a prepared data set, read by several threads: HDF5 inflates in one, and a GPU would wait for it."""

import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from ..jobs import cores
from ..launch import local_size
from ..progress import track

MOST = 8  # threads
SILENT = 1 << 30  # bytes up to which reading is not worth a line
CHECKSUM = 4  # bytes behind a chunk; what is inflated carries another one


class Rows:
    """Rows of a dataset that store.py wrote, each a chunk of its own; they are read when they are asked for."""

    def __init__(self, dataset: h5py.Dataset) -> None:
        self.dataset, self.shape = dataset, dataset.shape
        ours = (dataset.compression, dataset.fletcher32, dataset.shuffle) == ("gzip", True, False)
        self.direct = ours and dataset.chunks == (1, *dataset.shape[1:])

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, row: int) -> NDArray[Any]:
        """One row; a :class:`UserError` if it is damaged."""
        if self.direct:
            left_out, data = self.dataset.id.read_direct_chunk((row, *[0] * (len(self.shape) - 1)))
            if not left_out:  # of a chunk that grows by it, HDF5 leaves the compression out
                try:
                    plain = zlib.decompress(memoryview(data)[:-CHECKSUM])
                    return np.frombuffer(bytearray(plain), self.dataset.dtype).reshape(self.shape[1:])
                except (zlib.error, ValueError) as error:
                    place = f"{self.dataset.file.filename}: {self.dataset.name}, row {row}"
                    raise UserError(f"{place}: damaged ({error}). Prepare the data again.") from None
        return np.asarray(self.dataset[row])


def readers() -> ThreadPoolExecutor | None:
    """Threads that read rows: half of the cores of this process; None where that is but one."""
    every, mine = os.cpu_count() or 1, cores()
    # Cores that a scheduler gave to this process are its own; all of a machine's are those of all its processes.
    threads = min(MOST, (mine if mine < every else every // local_size(os.environ)) // 2)
    return ThreadPoolExecutor(threads, "read-rows") if threads > 1 else None


def held(datasets: Sequence[h5py.Dataset], pool: ThreadPoolExecutor | None) -> list[NDArray[Any]]:
    """Datasets in memory."""
    arrays = [np.empty(dataset.shape, dataset.dtype) for dataset in datasets]
    wanted = [(Rows(dataset), array, row) for dataset, array in zip(datasets, arrays, strict=True) for row in range(len(array))]

    def take(one: tuple[Rows, NDArray[Any], int]) -> None:
        rows, array, row = one
        array[row] = rows[row]

    taken = map(take, wanted) if pool is None else pool.map(take, wanted)
    long = sum(array.nbytes for array in arrays) > SILENT
    for _ in track(taken, "data", len(wanted), "arrays") if long else taken:
        pass
    return arrays
