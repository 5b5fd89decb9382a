"""The MRI sections of an experiment, and the options of the commands that exist for MRI alone."""

from dataclasses import field
from pathlib import Path
from typing import Literal

from ..config import Experiment, require, section

TOLERANCE = 3e-4  # of the change in an iteration of L1-wavelet


@section
class MRIData:
    """Which scans are learned from, and how they are undersampled."""

    kspace: tuple[Path, ...] = ()
    """Files or folders of multi-coil k-space (fastMRI .h5)."""
    references: tuple[Path, ...] = ()
    """Scans whose clean images are the references of the evaluation; none: those that are learned from, if fully sampled."""
    singlecoil: bool = False
    """The scans are single-coil files (slices, H, W)."""
    maps: Path | None = None
    """Folder of <stem>.maps.h5; by default RUNS/NAME/espirit."""
    accel: float = 4.0
    """Acceleration R: floor(W / R) columns are kept, the ACS lines included (also -R, --accel)."""
    acs: int | None = None
    """Autocalibration lines, always kept; by default round(W / 16)."""
    mask: Literal["random", "equispaced", "fastmri_random", "fastmri_equispaced"] = "random"
    """How columns are chosen: exactly floor(W / R) at random or evenly spaced; or as the fastMRI package does, for comparisons with
    published results (its R is what it comes to)."""
    size: tuple[int, int] | None = None
    """Rows and columns to which images are cropped; by default as in the files."""
    matrix: tuple[int, int] | None = None
    """A common matrix at the field of view of each scan: k-space is cut, or filled up with zeros; before ``size``."""
    oversampling: Literal["remove", "keep"] = "remove"
    """What becomes of the rows of an oversampled readout that the scanner does not show (with ``size``, that decides)."""
    coils: int | None = None
    """Compress to so many virtual coils; by default all are kept (also --coils)."""
    whiten: bool = True
    """Make the noise of the coils independent, where the file has noise scans and ``noise_std`` is not given."""
    thinning: Literal["redrawn", "fixed"] = "redrawn"
    """Whether the further corrupted mask is drawn anew at every step or once a sample (public teachers)."""
    noise_std: float | Literal["auto"] = "auto"
    """Noise of the k-space, per real component, in the units of the file; auto: what the file or its noise scans say, else what the ends of
    the readout or the outermost lines hold, which is an upper bound where the signal is more than 10 times as strong."""
    display_max: float | None = None
    """The magnitude that is shown, and measured, as white; by default the 99.9th percentile of the observed magnitudes. Give one number to
    data sets, of several accelerations say, whose distances are to be compared."""
    bank: int = 512
    """How many coil maps a run keeps, at least one of each matrix, so that sampling needs no data."""
    workers: int = 1
    """Processes that prepare the scans, each with one scan in memory; 0: one a core. What they make does not depend on it."""

    def __post_init__(self) -> None:
        require(self.accel >= 1, "data.accel must be at least 1")
        require(self.acs is None or self.acs >= 0, "data.acs must not be negative")
        require(self.noise_std == "auto" or self.noise_std >= 0, "data.noise_std must not be negative")
        require(self.bank >= 1, "data.bank must be at least 1")
        require(self.workers >= 0, "data.workers must not be negative")
        require(self.display_max is None or self.display_max > 0, "data.display_max must be positive")
        require(self.matrix is None or min(self.matrix) >= 8, "data.matrix must be at least 8 in both directions")
        require(self.coils is None or self.coils >= 1, "data.coils must be at least 1")
        require(self.size is None or min(self.size) >= 8, "data.size must be at least 8 in both directions")


@section
class L1Config:
    """What the verb restore does to undersampled data: L1-wavelet compressed sensing, for teachers of the results (L1-EDM)."""

    lam: float | Literal["auto"] | None = None
    """Weight of the penalty, relative to the largest magnitude of A^H y; by default 5e-4 or, from R = 5 on, 7e-4; auto: what best predicts
    a tenth of the columns of eight slices that is held back."""
    wavelet: str = "db4"
    """An orthogonal wavelet of PyWavelets: haar, db2 to db38, sym2 to sym20, coif1 to coif17."""
    levels: int | None = None
    """Levels of the wavelet transform; by default as many as leave 16 pixels."""
    iterations: int = 50
    """At most so many."""

    def __post_init__(self) -> None:
        require(not isinstance(self.lam, int | float) or self.lam > 0, "l1.lam must be above 0")
        require(self.levels is None or self.levels >= 1, "l1.levels must be at least 1")
        require(self.iterations >= 1, "l1.iterations must be at least 1")


@section
class MRIExperiment(Experiment):
    """One MRI experiment: one row of a table."""

    data: MRIData = field(default_factory=MRIData)
    l1: L1Config = field(default_factory=L1Config)


@section
class SimulateConfig:
    """Multi-coil k-space in fastMRI's layout from drawn phantoms or from magnitude images."""

    phantoms: int = 0
    """Draw this many phantom volumes instead of reading images."""
    slices: int = 8
    """Slices a phantom volume, or images a file where the .npz does not say whose they are."""
    size: tuple[int, int] = (64, 64)
    """Rows and columns of the k-space."""
    coils: int = 8
    """Receive coils (with --coil-maps: as many as that file holds)."""
    snr: float = 50.0
    """Signal over noise of the combined image: the 99th percentile of its magnitude over the noise of its real part."""
    noise: Literal["white", "coloured"] = "white"
    """coloured: correlated between the coils and of unequal strength, as measured beside --coil-maps, or drawn."""
    phase: float = 1.0
    """Strength of the smooth phase; 1: over the whole circle, as scanners leave it, 0: real images."""
    coil_maps: Path | None = None
    """An .npz with measured sensitivity maps (coils, h, w), instead of drawn ones."""
    coil_maps_key: str = ""
    """Which array of the .npz; <key>_noise_cov beside it, if present, prewhitens the maps (name_noise_cov for name_128, too)."""
    split: str = ""
    """Which array of an images .npz, such as train or test; <split>_subject beside it makes one file of each subject's images."""
    limit: int = 0
    """Take at most this many images, spread over the whole; 0: all."""
    seed: int = 0
    """Seed of phases, maps and noise; each file is a function of it and of its name."""

    def __post_init__(self) -> None:
        require(self.phantoms >= 0 and self.slices >= 1, "phantoms must not be negative, slices at least 1")
        require(min(self.size) >= 8, "size must be at least 8 in both directions")
        require(self.coils >= 1, "coils must be at least 1")
        require(self.snr > 0, "snr must be positive")
        require(self.limit >= 0 and self.seed >= 0, "limit and seed must not be negative")


@section
class EspiritConfig:
    """Coil sensitivity maps from the autocalibration lines (Uecker et al. 2014)."""

    backend: Literal["torch", "sigpy", "walsh"] = "torch"
    """Which implementation: ours, or sigpy's, which is slower and gives the same maps; walsh is not ESPIRiT but Walsh's adaptive
    combination, rougher, for scans with fewer ACS lines than a kernel is wide."""
    calib: int | None = None
    """Width of the calibration block; by default what an accelerated scan of this width keeps, round(W / 16), if that is at
    least 12 lines, else 24 (both at most the fully sampled block that is found)."""
    kernel: int | None = None
    """Width of the kernels in k-space; by default 6, and down to 4 for calibration blocks of fewer than 18 lines."""
    threshold: float | None = None
    """Singular values of the calibration matrix below this part of the largest are noise; by default 0.02, or what the noise at
    the ends of the readout reaches by itself, if that is more."""
    crop: float | None = None
    """Maps are zero where the eigenvalue is below this; by default 0.95, of two sets 0.9."""
    singlecoil: bool = False
    """The scans are single-coil files (slices, H, W): their map is one everywhere, and nothing is estimated."""
    sets: Literal[1, 2] = 1
    """Sets of maps; 2 for a field of view smaller than the object. Training takes one."""
    iterations: int = 100
    """Power iterations a pixel (backend sigpy)."""
    workers: int = 0
    """Processes; 0: one a core."""
    shard: str = ""
    """i/n: only every n-th file, from the i-th; by default the part of this task in its SLURM array, else everything."""
    retry_failed: bool = False
    """Try files again that failed before (failures.jsonl) and have not changed."""
    report: bool = False
    """Also write <stem>.maps.png: maps, eigenvalues and what they leave of the coil images, of the middle slice."""
    slurm: int = 0
    """Send a SLURM array of so many tasks instead (extra [slurm])."""
    slurm_options: tuple[str, ...] = ()
    """NAME=VALUE for submitit, such as slurm_partition=cpu timeout_min=600."""

    def __post_init__(self) -> None:
        require(self.kernel is None or self.kernel >= 2, "kernel must be at least 2")
        require(self.calib is None or self.calib >= (self.kernel or 2), "calib must be at least as wide as the kernel")
        require(self.threshold is None or 0 < self.threshold < 1, "threshold must lie in (0, 1)")
        require(self.crop is None or 0 <= self.crop < 1, "crop must lie in [0, 1)")
        require(self.slurm >= 0, "slurm must not be negative")
        require(self.sets == 1 or self.backend == "torch", "two sets of maps need the backend 'torch'")
        require(self.iterations >= 1 and self.workers >= 0, "iterations must be at least 1, workers not negative")


@section
class ReconstructConfig:
    """Images from k-space without a learned prior."""

    maps: Path
    """Folder of <stem>.maps.h5, as rsdmri-espirit writes them."""
    method: Literal["l1", "sense"] = "l1"
    """l1: compressed sensing with wavelets (Lustig et al. 2007); sense: least squares (Pruessmann et al. 2001)."""
    backend: Literal["torch", "sigpy"] = "torch"
    """l1 only: ours, or sigpy's L1WaveletRecon, which is slower."""
    accel: float | None = None
    """Undersample fully sampled scans so much before, as rsdmri-prepare would; by default scans stay as they are."""
    acs: int | None = None
    """Autocalibration lines that --accel keeps; by default round(W / 16)."""
    mask: Literal["random", "equispaced", "fastmri_random", "fastmri_equispaced"] = "random"
    """How --accel chooses columns (data.mask)."""
    seed: int = 0
    """Seed of these masks; each is a function of it and of the volume's name."""
    lam: float | Literal["auto"] | None = None
    """Weight of the penalty; l1: relative to the largest magnitude of A^H y, by default 5e-4 or, from R = 5 on, 7e-4; sense: by default 0.
    auto (l1): what best predicts a tenth of the columns of the middle slice that is held back."""
    wavelet: str = "db4"
    """An orthogonal wavelet of PyWavelets: haar, db2 to db38, sym2 to sym20, coif1 to coif17."""
    levels: int | None = None
    """Levels of the wavelet transform; by default as many as leave 16 pixels."""
    iterations: int | None = None
    """At most so many; by default 50, of sense 30, of sigpy 100."""
    tolerance: float = TOLERANCE
    """An image is finished when an iteration changes it by less than this part of its norm, or when its changes fall no more; 0: after all
    iterations. sense: when that is left of the residual."""
    nifti: bool = False
    """Also write <stem>.nii.gz (extra [io])."""
    dicom: bool = False
    """Also write a folder <stem>.dicom of DICOM secondary captures, without anything about a patient (extra [io])."""
    singlecoil: bool = False
    """The scans are single-coil files (slices, H, W)."""
    workers: int = 0
    """Processes; 0: one a core."""
    shard: str = ""
    """i/n: only every n-th file, from the i-th; by default the part of this task in its SLURM array, else everything."""

    def __post_init__(self) -> None:
        require(self.accel is None or self.accel >= 1, "accel must be at least 1")
        require(self.acs is None or self.acs >= 0, "acs must not be negative")
        if isinstance(self.lam, int | float):
            require(self.method != "l1" or self.lam > 0, "lam must be above 0 for l1; without a penalty, take --method sense")
            require(self.lam >= 0, "lam must not be negative")
        require(self.method == "l1" or (self.lam != "auto" and self.backend == "torch"), "lam auto and sigpy are for l1 alone")
        require(self.backend == "torch" or self.levels is None, "levels cannot be chosen with the backend sigpy")
        require(self.backend == "torch" or self.lam != "auto", "lam auto is for the backend torch: sigpy's wants another weight")
        require(
            self.backend == "torch" or self.tolerance == TOLERANCE, "the backend sigpy has no tolerance, but iterations alone"
        )
        wavelets = self.wavelet == "db4" and self.levels is None
        require(self.method == "l1" or wavelets, "wavelet and levels are for l1: sense has no wavelets")
        require(self.levels is None or self.levels >= 1, "levels must be at least 1")
        require(self.iterations is None or self.iterations >= 1, "iterations must be at least 1")
        require(self.tolerance >= 0 and self.seed >= 0 and self.workers >= 0, "tolerance, seed and workers must not be negative")
