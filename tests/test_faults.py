"""Scans with faults, as they come: each is done, or named in one line, and the others are done; nothing half-written, no NaN in maps."""

import os

import h5py
import numpy as np
import pytest
import torch
from commands import run_command
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rsdmri.errors import UserError
from rsdmri.mri import phantoms
from rsdmri.mri.__main__ import APPLICATION
from rsdmri.mri.config import EspiritConfig
from rsdmri.mri.estimate import estimate_files
from rsdmri.mri.maps import read_maps

CONFIG = EspiritConfig(workers=1, calib=16)
GOOD = phantoms.draw(0, 0, 2, 3, (24, 28)).numpy()


def save(path, kspace=GOOD, **more):
    with h5py.File(path, "w") as file:
        file["kspace"] = kspace
        for name, value in more.items():
            file[name] = value
    return path


def changed(**parts):
    """The good k-space with one thing changed."""
    k = GOOD.copy()
    for name, value in parts.items():
        if name == "coil":
            k[:, value] = 0
        if name == "slice":
            k[value] = 0
        if name == "at":
            k[1, 0, value[0], value[1]] = np.nan
    return k


def columns(*chosen):
    mask = np.zeros(28, bool)
    mask[list(chosen)] = True
    return mask


REFUSED = {
    "nan in the acs": ({"kspace": changed(at=(12, 14))}, "NaN or infinity in slice 1"),
    "nan outside": ({"kspace": changed(at=(0, 0))}, "NaN or infinity in slice 1"),
    "zeros": ({"kspace": np.zeros_like(GOOD)}, "nothing was measured"),
    "three axes": ({"kspace": GOOD[0]}, "single-coil file"),
    "six axes": ({"kspace": GOOD[None, None]}, "6 axes"),
    "integers": ({"kspace": GOOD.real.astype(np.int32)}, "int32, not complex"),
    "short mask": ({"mask": np.ones(27)}, "shape 27; expected 28"),
    "empty mask": ({"mask": np.zeros(28)}, "nothing was measured"),
    "no acs": ({"kspace": np.where(columns(1, 3, 25), GOOD, 0)}, "no sampled line in the ACS"),
    "two lines": ({"mask": columns(2, 14, 15, 20)}, "2 fully sampled ACS lines found, and kernels of width 4 need at least 4"),
    "small matrix": ({"kspace": GOOD[..., :3, :5]}, "fully sampled ACS lines found, and kernels of width 4 need at least 4"),
}

DONE = {
    "a zero slice": {"kspace": changed(slice=0)},
    "a dead coil": {"kspace": changed(coil=1)},
    "double": {"kspace": GOOD.astype(np.complex128)},
    "pairs": {"kspace": np.stack([GOOD.real, GOOD.imag], -1)},
    "all ones": {"mask": np.ones(28)},
    "two-dimensional mask": {"sampling_mask": np.ones((24, 28), bool)},
    "seven lines": {"mask": columns(*range(11, 18), 2, 25)},
    "twelve lines": {"mask": columns(*range(8, 20), 2, 25)},
    "one coil": {"kspace": GOOD[:, :1]},
    "two coils": {"kspace": GOOD[:, :2]},
    "odd": {"kspace": GOOD[..., :23, :27]},
    "64 coils": {"kspace": phantoms.draw(0, 1, 1, 64, (24, 28)).numpy()},
    "a header that contradicts": {
        "ismrmrd_header": "<a><encoding><encodedSpace><matrixSize><x>999</x><y>7</y></matrixSize></encodedSpace></encoding></a>"
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All of them in one folder, with names of all kinds."""
    path = tmp_path_factory.mktemp("scans")
    for name, (parts, _) in REFUSED.items():
        save(path / f"bad {name}.h5", **parts)
    for name, parts in DONE.items():
        save(path / f"ünicode {name}.h5", **parts)
    (path / "bad page.h5").write_bytes(b"<!doctype html>")
    (path / "bad loop.h5").symlink_to(path / "bad loop.h5")
    return path


@pytest.fixture(scope="module")
def outcome(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("maps")
    with pytest.raises(UserError) as error:
        estimate_files([folder], out, CONFIG)
    return out, str(error.value)


def test_the_bad_ones_are_named_and_the_others_done(folder, outcome):
    out, text = outcome
    assert text.startswith(f"{len(REFUSED) + 2} of {len(REFUSED) + len(DONE) + 2} files failed, the others are done")
    assert "unexpected" not in text
    assert sorted(path.name for path in out.iterdir() if path.suffix == ".h5") == sorted(
        f"ünicode {name}.maps.h5" for name in DONE
    )


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_said(outcome, folder, name):
    (line,) = [line for line in outcome[1].splitlines() if line.startswith(f"{folder}/bad {name}.h5: ")]
    assert REFUSED[name][1] in line


@pytest.mark.parametrize("name", DONE)
def test_what_is_done(outcome, folder, name):
    maps = read_maps(outcome[0], folder / f"ünicode {name}.h5")
    assert torch.isfinite(torch.view_as_real(maps.maps)).all()
    assert maps.valid.tolist() == ([False, True] if name == "a zero slice" else [True] * len(maps.valid))
    norm = maps.maps.norm(dim=1)
    assert torch.allclose(norm[norm > 0], torch.ones(1, dtype=torch.float32), atol=1e-5)
    assert maps.maps[~maps.valid].abs().sum() == 0


def test_the_command_says_the_same_and_ends_with_one(folder, tmp_path, capsys):
    assert run_command(APPLICATION, "espirit", folder / "bad zeros.h5", "--out", tmp_path, "--workers", "1") == 1
    assert "nothing was measured" in capsys.readouterr().err
    assert (
        run_command(APPLICATION, "espirit", folder / "ünicode a dead coil.h5", "--out", tmp_path / "dead", "--workers", "1") == 0
    )
    assert "a dead coil.h5: coil 1 without signal" in capsys.readouterr().err
    both = [folder / "ünicode a dead coil.h5", folder / "bad zeros.h5"]
    assert run_command(APPLICATION, "espirit", *both, "--out", tmp_path / "both", "--workers", "1") == 1
    assert "a dead coil.h5: coil 1 without signal" in capsys.readouterr().err
    again = folder / ".." / folder.name / "ünicode odd.h5"
    assert run_command(APPLICATION, "espirit", folder / "ünicode odd.h5", again, "--out", tmp_path, "--workers", "1") == 0
    assert len(list(tmp_path.glob("*.maps.h5"))) == 1


@pytest.mark.parametrize("name", DONE)
def test_what_is_done_can_be_prepared(outcome, folder, name, tmp_path, capsys):
    """Or is refused in one line, with nothing left behind."""
    where = ["--data.kspace", folder / f"ünicode {name}.h5", "--data.maps", outcome[0], "--runs", tmp_path, "--name", "x"]
    code = run_command(APPLICATION, "prepare", *where, "--data.accel", "2", "--data.acs", "4")
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert code == (1 if name == "two-dimensional mask" else 0), error
    assert bool(list(tmp_path.rglob("*.h5"))) == (code == 0)


def test_a_folder_with_many_other_files(tmp_path):
    for number in range(10_000):
        os.close(os.open(tmp_path / f"{number}.dat", os.O_CREAT))
    save(tmp_path / "scan.h5")
    estimate_files([tmp_path], tmp_path / "maps", CONFIG)
    assert [path.name for path in (tmp_path / "maps").iterdir()] == ["scan.maps.h5"]


# ------------------------------------------------------------------ random faults

SHAPES = st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(1, 20), st.integers(1, 20))
KINDS = ["<c8", "<c16", "<f4", "<i2", "?", "S3"]


@st.composite
def files(draw):
    """Contents of a file: k-space of any shape and type, with faults, a mask, a header, a noise level."""
    shape = draw(st.one_of(SHAPES, SHAPES.map(lambda s: s[1:]), SHAPES.map(lambda s: (*s, 2)), SHAPES.map(lambda s: (2, *s))))
    kind = draw(st.sampled_from(KINDS))
    rng = np.random.default_rng(draw(st.integers(0, 5)))
    values = rng.normal(size=shape) * draw(st.sampled_from([0, 1e-30, 1e-6, 1, 1e30]))
    with np.errstate(all="ignore"):
        k = (values + 1j * values.swapaxes(0, 0)[::-1] if kind[1:2] == "c" else values).astype(kind)
    if k.size and kind[1:2] in "cf":
        for fault in draw(st.lists(st.sampled_from(["nan", "inf", "zero slice", "zero coil", "columns"]), max_size=2)):
            if fault in ("nan", "inf"):
                k.flat[draw(st.integers(0, k.size - 1))] = float(fault)
            elif fault == "zero slice":
                k[0] = 0
            elif fault == "zero coil" and k.ndim > 1 and k.shape[1]:
                k[:, 0] = 0
            elif k.shape[-1]:
                k[..., :: draw(st.integers(1, 3))] = 0
    more = {}
    if draw(st.booleans()):
        more[draw(st.sampled_from(["mask", "sampling_mask"]))] = (
            rng.random(draw(st.sampled_from([shape[-1:], shape[-2:], (3,)]))) < 0.7
        )
    if draw(st.booleans()):
        more["ismrmrd_header"] = draw(st.sampled_from([b"", b"<a/>", b"\xff", "ü", 3.0]))
    if draw(st.booleans()):
        more["noise_std"] = draw(st.sampled_from([0.1, -1.0, np.nan, b"x", [1.0, 2.0]]))
    return k, more


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(files())
@example((np.array([[[[[np.nan, np.inf]]]]], np.float32), {}))
def test_random_faults_end_in_maps_or_in_one_line(tmp_path, content):
    path, out = tmp_path / "scan.h5", tmp_path / "maps"
    kspace, more = content
    save(path, kspace, **more)
    try:
        estimate_files([path], out, EspiritConfig(workers=1, kernel=3, retry_failed=True))
    except UserError as error:
        assert "unexpected" not in str(error), str(error)
        assert str(path) in str(error)
        assert not (out / "scan.maps.h5").exists() or read_maps(out, path)
        return
    maps = read_maps(out, path)
    assert torch.isfinite(torch.view_as_real(maps.maps)).all()
    assert torch.isfinite(maps.eigenvalues).all()
    (out / "scan.maps.h5").unlink()
