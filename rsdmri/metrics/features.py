"""Features of display images for the distances that compare clouds of points: made in blocks, kept by content.

``bands`` needs no file. ``inception`` is the network of FID, from a local file of weights. ``torchscript:PATH`` is any module of
``torch.jit.save`` that takes uint8 images (N, 3, H, W) and gives (N, D): a program, which is why it runs only when it is named.

A feature is a function of its image alone: the network always sees blocks of one size, at borders that do not depend on the number of
processes.
"""

import hashlib
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import UsageError, UserError
from ..files import atomic, sha256
from ..progress import track
from .bands import bands
from .sliced import ImageSet, as_array

BLOCK = 32  # images a network sees at once, always
KEPT = 8  # sets whose features stay in memory: the references of an evaluation, and not every set that is compared with them
TORCHSCRIPT = "torchscript:"
KINDS = f"bands, inception or {TORCHSCRIPT}PATH"

Pixels = NDArray[np.uint8]  # (N, H, W, channels)
Function = Callable[[Pixels], NDArray[Any]]  # a block of images -> (n, D)


class Extractor:
    """Features of images, (N, D).

    ``name`` says what they are and stands beside every number made of them: with the weights' SHA-256, where there are any. ``cache`` is a
    folder where they are kept by the content of the images; ``workers`` processes share the blocks, each with a network of its own.
    """

    def __init__(
        self, kind: str, weights: Path | None = None, *, device: str = "cpu", cache: Path | None = None, workers: int = 1
    ) -> None:
        self.kind, self.weights, self.device, self.cache, self.workers = kind, weights, device, cache, workers
        self.function, self.name = load(kind, weights, device)
        self.kept: dict[str, NDArray[Any]] = {}

    def __call__(self, images: ImageSet) -> NDArray[Any]:
        pixels = np.rint(255 * np.clip(as_array(images), 0, 1)).astype(np.uint8)
        # Other devices round otherwise.
        key = hashlib.sha256(f"{self.name} {self.device} {pixels.shape}".encode() + pixels.tobytes()).hexdigest()
        features = self.kept.pop(key) if key in self.kept else self._from_disk(key, pixels)
        self.kept[key] = features  # the last one used is the last one in it
        while len(self.kept) > KEPT:
            del self.kept[next(iter(self.kept))]
        return features

    def _from_disk(self, key: str, pixels: Pixels) -> NDArray[Any]:
        path = self.cache / f"{key}.npy" if self.cache else None
        if path is not None and path.exists():
            try:
                return np.asarray(np.load(path, allow_pickle=False))
            except (ValueError, EOFError, OSError):
                path.unlink()  # torn: made again
        features = self._extract(pixels)
        if path is not None:
            with atomic(path) as temporary:
                np.save(temporary, features)
        return features

    def _extract(self, pixels: Pixels) -> NDArray[Any]:
        blocks = [pixels[start : start + BLOCK] for start in range(0, len(pixels), BLOCK)]

        def shown(features: Iterator[NDArray[Any]]) -> NDArray[Any]:
            quick = self.kind == "bands"
            return np.concatenate(list(features if quick else track(features, "features", len(blocks), f"x {BLOCK} images")))

        if self.workers <= 1 or len(blocks) == 1:
            return shown(of_block(self.function, block) for block in blocks)
        start = (self.kind, self.weights, self.device, max(1, torch.get_num_threads() // self.workers))
        # Not forked: threads of torch do not survive it.
        with ProcessPoolExecutor(self.workers, get_context("spawn"), _start, start) as pool:
            return shown(pool.map(_work, blocks))


def of_block(function: Function, pixels: Pixels) -> NDArray[Any]:
    """Features of up to 32 images: filled up to 32, because the order of a network's sums may depend on the size of its batch."""
    filled = np.concatenate([pixels, np.repeat(pixels[-1:], BLOCK - len(pixels), axis=0)])
    features = function(filled)[: len(pixels)]
    if not np.isfinite(features).all():
        raise UserError("the network gave features that are NaN or infinite: its weights are not those of a trained network")
    return features


def load(kind: str, weights: Path | None, device: str) -> tuple[Function, str]:
    """The function of a block of images, and the name of its features.

    Raises:
        UsageError: no such kind of features.
        UserError: a file of weights that is missing or is not what it should be.
    """
    if kind == "bands":
        return bands, "bands"
    if kind == "inception":
        from .weights import load_inception

        network, digest = load_inception(weights)
        return _of_network(network.to(device), device), f"inception {digest[:8]}"
    if kind.startswith(TORCHSCRIPT):
        path = Path(kind.removeprefix(TORCHSCRIPT))
        return _of_network(_torchscript(path, device), device), f"torchscript {path.name} {sha256(path)[:8]}"
    raise UsageError(f"features '{kind}': expected {KINDS}")


def _torchscript(path: Path, device: str) -> Callable[[torch.Tensor], torch.Tensor]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a module of torch.jit.save")
    try:
        with warnings.catch_warnings(action="ignore"):  # deprecated for its successor, which is bound to one batch size
            module: Callable[[torch.Tensor], torch.Tensor] = torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{path}: not a module of torch.jit.save ({str(error).splitlines()[0]})") from None
    return module


def _of_network(network: Callable[[torch.Tensor], torch.Tensor], device: str) -> Function:
    """A network on uint8 (N, 3, H, W) as a function of pixels; one channel is repeated."""

    def function(pixels: Pixels) -> NDArray[Any]:
        images = torch.from_numpy(np.broadcast_to(pixels, (*pixels.shape[:-1], 3)).copy()).movedim(-1, 1)
        try:
            with torch.no_grad():
                features = network(images.contiguous().to(device))
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1] if str(error).strip() else "no reason given"
            raise UserError(f"the network of the features cannot take images of uint8 {tuple(images.shape)}: {reason}") from None
        if not isinstance(features, torch.Tensor) or features.ndim != 2 or len(features) != len(pixels):
            shape = tuple(getattr(features, "shape", ()))
            raise UserError(
                f"the network gave {shape or type(features).__name__} for {len(pixels)} images; expected ({len(pixels)}, D)"
            )
        return np.asarray(features.float().cpu())

    return function


_function: Function | None = None  # of a worker process


def _start(kind: str, weights: Path | None, device: str, threads: int) -> None:
    global _function
    torch.set_num_threads(threads)
    _function, _ = load(kind, weights, device)


def _work(pixels: Pixels) -> NDArray[Any]:
    assert _function is not None
    return of_block(_function, pixels)
