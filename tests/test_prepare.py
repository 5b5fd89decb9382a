"""What becomes of scans that are not as the demo's: broken, padded, undersampled, of several sizes and coils."""

import json
import re
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest
import torch
from commands import run_command

from rsdmri.errors import UserError
from rsdmri.mri import phantoms, rows
from rsdmri.mri.__main__ import APPLICATION
from rsdmri.mri.domain import MRI, MRIObservations
from rsdmri.mri.fastmri_file import write_fastmri
from rsdmri.mri.masks import acs_lines
from rsdmri.mri.patterns import fastmri_columns
from rsdmri.mri.rows import Rows
from rsdmri.settings import load_experiment
from rsdmri.tensors import make_generator


def run(*arguments):
    return run_command(APPLICATION, *arguments)


def scan(folder, name, coils=4, size=(16, 16), mask=None, noise_std=0.01):
    kspace = phantoms.draw(0, len(name), 2, coils, size)
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.h5"
    write_fastmri(path, kspace, acquisition="AXT2", noise_std=noise_std)
    if mask is not None:
        with h5py.File(path, "r+") as file:
            file["kspace"][...] = np.where(mask, file["kspace"][()], 0)
            file["mask"] = mask
    return path


def prepare(tmp_path, *extra, espirit=True):
    if espirit:
        code = run("espirit", tmp_path / "kspace", "--out", tmp_path / "maps", "--workers", "1", "--calib", "12")
        assert code == 0
    where = ["--data.kspace", tmp_path / "kspace", "--data.maps", tmp_path / "maps", "--runs", tmp_path / "runs", "--name", "x"]
    return run("prepare", *where, *extra)


def opened(tmp_path, config="defaults"):
    experiment = load_experiment(type(APPLICATION.experiment()), [] if config == "defaults" else [config])
    return MRI().observations(tmp_path / "runs/x/prepare/observations.h5", experiment)


def test_scans_with_fewer_coils_are_filled_with_zero_maps(tmp_path):
    scan(tmp_path / "kspace", "four", coils=4)
    scan(tmp_path / "kspace", "sixsix", coils=6)
    assert prepare(tmp_path) == 0
    data = opened(tmp_path)
    obs = data.batch(range(4))
    assert obs.y.shape == (4, 6, 16, 16)
    x = obs.operator.to_image(obs.y)
    alone = obs.operator.maps[:2, :4], obs.y[:2, :4]
    from rsdmri.mri.fourier import ifft2c

    assert torch.allclose(x[:2, 0], (alone[0].conj() * ifft2c(alone[1])).sum(1), atol=1e-6)


def test_the_same_scan_in_other_units_is_the_same_data(tmp_path):
    """fastMRI's values are about 1e-5: nothing may depend on that."""
    first = scan(tmp_path / "kspace", "scan")
    assert prepare(tmp_path) == 0
    one = opened(tmp_path)
    with h5py.File(first, "r+") as file:
        file["kspace"][...] = file["kspace"][()] * np.float32(1e-5)
        file.attrs["noise_std"] = file.attrs["noise_std"] * 1e-5
    assert prepare(tmp_path) == 0
    other = opened(tmp_path)
    assert torch.allclose(one.batch(range(2)).y, other.batch(range(2)).y, atol=1e-4)
    assert torch.allclose(one.noise_std, other.noise_std, rtol=1e-4)


def test_undersampled_scans_keep_their_masks_and_have_no_reference(tmp_path):
    mask = np.zeros(16, bool)
    mask[[1, 4, 6, 7, 8, 9, 10, 13]] = True
    scan(tmp_path / "kspace", "under", mask=mask)
    code = run("espirit", tmp_path / "kspace", "--out", tmp_path / "maps", "--workers", "1", "--calib", "5", "--kernel", "3")
    assert code == 0
    assert prepare(tmp_path, "--data.acs", "4", espirit=False) == 0
    data = opened(tmp_path)
    assert (torch.stack(data.mask).numpy() == mask).all()
    assert not (tmp_path / "runs/x/prepare/references.h5").exists()
    operator, _ = data.law().draw(5, (16, 16), make_generator(0))
    assert (operator.mask[:, 0, 0].numpy() == mask).all()


def test_noise_is_read_off_the_edges_where_the_file_does_not_say(tmp_path, generator):
    path = scan(tmp_path / "kspace", "scan", size=(64, 16))
    std = 0.3
    with h5py.File(path, "r+") as file:
        k = torch.from_numpy(file["kspace"][()])
        noise = torch.randn(*k.shape, 2, generator=generator, dtype=torch.float32)
        file["kspace"][...] = (k + std * torch.view_as_complex(noise)).numpy()
        del file.attrs["noise_std"]
    assert prepare(tmp_path, "--data.acs", "2") == 0
    with h5py.File(tmp_path / "runs/x/prepare/observations.h5") as file:
        found = np.concatenate([group["noise_std"][()] * group["scale"][()] for group in file.values()])
    assert found == pytest.approx([std, std], rel=0.2)


def test_sizes_that_differ_are_buckets_or_brought_to_one(tmp_path, capsys):
    scan(tmp_path / "kspace", "small")
    scan(tmp_path / "kspace", "other", coils=6)
    scan(tmp_path / "kspace", "large", size=(20, 24))
    assert prepare(tmp_path) == 0
    assert "slices of 2 matrices (4 of 16 x 16, 2 of 20 x 24)" in capsys.readouterr().err
    data = opened(tmp_path)
    assert [(size, len(bucket)) for size, bucket in data.buckets.items()] == [((16, 16), 4), ((20, 24), 2)]
    for size, coils in (((16, 16), 6), ((20, 24), 4)):
        obs = data.batch(data.buckets[size])
        assert obs.y.shape[1:] == (coils, *size)
        images, names = MRI().references(tmp_path / "runs/x/prepare/references.h5", size)
        assert set(names) == {data.names[i] for i in data.buckets[size]}
        assert images.shape[2:] == size
    brightest = [float(data.batch(b).operator.to_image(data.batch(b).y).abs().max()) for b in data.buckets.values()]
    assert max(brightest) < 2 * min(brightest)
    assert prepare(tmp_path, "--data.matrix", "20", "20", espirit=False) == 0
    assert list(opened(tmp_path).buckets) == [(20, 20)]
    assert prepare(tmp_path, "--data.size", "16", "16", espirit=False) == 0
    assert list(opened(tmp_path).buckets) == [(16, 16)]


def test_widths_without_room_for_the_acceleration_are_named_at_once(tmp_path, capsys):
    scan(tmp_path / "kspace", "good")
    scan(tmp_path / "kspace", "narrow", size=(16, 8))
    assert prepare(tmp_path, "-R", "3", "--config", "mri/demo", "--data.acs", "2") == 1
    error = capsys.readouterr().err
    assert "warning: 1 of 2 scans, narrow.h5 first: acceleration 3 is impossible with 8 columns" in error
    assert "data.matrix" in error


def test_a_matrix_has_its_own_law_of_masks(tmp_path):
    """One undersampled scan of another matrix does not take the law of masks away from the others."""
    for number in range(3):
        scan(tmp_path / "kspace", "x" * (number + 1), size=(16, 32))
    mask = np.zeros(24, bool)
    mask[[1, 4, 9, 10, 11, 12, 13, 20]] = True
    scan(tmp_path / "kspace", "under", size=(16, 24), mask=mask)
    assert run("espirit", tmp_path / "kspace", "--out", tmp_path / "maps", "--workers", "1", "--calib", "5", "--kernel", "3") == 0
    assert prepare(tmp_path, "--data.acs", "2", espirit=False) == 0
    law = opened(tmp_path).law()
    masks = law.draw(100, (16, 32), make_generator(0))[0].mask[:, 0, 0]
    assert len({tuple(m.tolist()) for m in masks}) > 90
    masks = law.draw(100, (16, 24), make_generator(0))[0].mask[:, 0, 0]
    assert (masks.numpy() == mask).all()


def test_the_order_within_a_matrix_is_that_of_the_numbers_of_coils(tmp_path):
    """As text: 1, 12, 2, as the groups of a data set of one matrix were always read."""
    for name, coils in (("a", 12), ("bb", 2)):
        scan(tmp_path / "kspace", name, coils=coils)
    assert prepare(tmp_path) == 0
    assert opened(tmp_path).names == ["a/0", "a/1", "bb/0", "bb/1"]


def test_a_law_of_several_matrices(tmp_path):
    for number in range(3):
        scan(tmp_path / "kspace", "x" * (number + 1), size=(16, 16))
    scan(tmp_path / "kspace", "large", size=(16, 48))
    assert prepare(tmp_path) == 0
    law = opened(tmp_path).law()
    law.save(tmp_path / "operators.h5")
    again = MRI().law(tmp_path / "operators.h5")
    assert list(again.sizes.items()) == list(law.sizes.items()) == [((16, 16), 6), ((16, 48), 2)]
    for size, acs in (((16, 16), 1), ((16, 48), 3)):
        operator, noise_std = again.draw(20, size, make_generator(0))
        expected, expected_std = law.draw(20, size, make_generator(0))
        assert torch.equal(operator.maps, expected.maps)
        assert torch.equal(operator.mask, expected.mask)
        assert torch.equal(noise_std, expected_std)
        assert operator.mask[..., acs_lines(size[1], acs)].all()
        assert (operator.mask.sum(-1) == size[1] // 4).all()
        assert (again.thin(operator, make_generator(1)).mask.sum(-1) == size[1] // 5).all()
        assert (again.rescan(operator, make_generator(1)).mask.sum(-1) == size[1] // 4).all()
    with pytest.raises(UserError, match="images of 8 x 8, and this run has coil maps of 16 x 16, 16 x 48"):
        again.draw(1, (8, 8), make_generator(0))


def test_the_bank_is_shared_between_matrices(tmp_path):
    for number in range(3):
        scan(tmp_path / "kspace", "x" * (number + 1), size=(16, 16))
    scan(tmp_path / "kspace", "large", size=(16, 48))
    assert prepare(tmp_path) == 0
    for bank, expected in ((4, [3, 1]), (1, [1, 1]), (100, [6, 2])):
        law = MRIObservations(tmp_path / "runs/x/prepare/observations.h5", bank).law()
        assert [len(found.maps) for found in law.banks.values()] == expected


def test_the_whole_path_with_several_matrices(tmp_path, capsys):
    """Training takes every matrix, also one that cannot be halved; what is sampled and evaluated is the most frequent."""
    mask = np.zeros(16, bool)
    mask[[1, 5, 6, 7, 8, 9, 10, 13]] = True
    for number in range(17):
        scan(tmp_path / "kspace", "x" * (number + 1), size=(16, 16), mask=mask)
    scan(tmp_path / "kspace", "large", size=(17, 25), coils=6)
    (tmp_path / "x.yaml").write_text(
        "network: {channels: 8, multipliers: [1, 2]}\npretrain: {images: 64, batch: 4, log: 8}\ndata: {acs: 2}\n"
        "distill: {images: 32, batch: 4, log: 8}\nsample: {n: 16, batch: 4, steps: 3}\n"
    )
    flags = ["--config", tmp_path / "x.yaml", "--runs", tmp_path / "runs"]
    calib = ["--workers", "1", "--calib", "6", "--kernel", "3"]
    assert run("espirit", tmp_path / "kspace", "--out", tmp_path / "maps", *calib) == 0
    assert prepare(tmp_path, "--config", tmp_path / "x.yaml", espirit=False) == 0
    for verb in ("pretrain", "distill", "sample", "evaluate", "report"):
        assert run(verb, *flags) == 0, verb
    assert "evaluate: 0 clean references of 16 x 16, too few" in capsys.readouterr().err
    with h5py.File(tmp_path / "runs/x/distill/samples.h5") as file:
        assert file["images"].shape == (16, 16, 16)
    results = json.loads((tmp_path / "runs/x/evaluate/metrics.json").read_text())
    assert results["preprocessing"]["size"] == [16, 16]
    assert results["rows"][1]["proximal"]
    assert not results["rows"][1]["metrics"]
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["images"], file["seeds"] = np.zeros((16, 8, 8), np.complex64), np.arange(16)
    assert run("evaluate", *flags, "--samples", f"other={tmp_path / 'other.h5'}") == 1
    assert "samples of several sizes cannot be compared" in capsys.readouterr().err
    for run_folder in ("distill", "pretrain"):
        (tmp_path / f"runs/x/{run_folder}/samples.h5").unlink(missing_ok=True)
    assert run("evaluate", *flags, "--samples", f"other={tmp_path / 'other.h5'}") == 1
    assert "images of 16 x 16, 17 x 25, and the samples are 8 x 8" in capsys.readouterr().err
    with h5py.File(tmp_path / "other.h5", "r+") as file:
        del file["images"]
        file["images"] = np.zeros((16, 17, 25), np.complex64)
    assert run("evaluate", *flags, "--samples", f"other={tmp_path / 'other.h5'}") == 1
    assert "2 of 36 observations are 17 x 25; distances need 32 of one size" in capsys.readouterr().err


def test_a_broken_file_among_good_ones(tmp_path, capsys):
    scan(tmp_path / "kspace", "good")
    (tmp_path / "kspace" / "broken.h5").write_text("<html>404</html>")
    assert run("espirit", tmp_path / "kspace", "--out", tmp_path / "maps", "--workers", "1", "--calib", "12") == 1
    err = capsys.readouterr().err
    assert "broken.h5" in err
    assert "HTML" in err
    assert "Traceback" not in err
    assert (tmp_path / "maps" / "good.maps.h5").exists()
    assert not list((tmp_path / "maps").glob("*broken*"))
    assert prepare(tmp_path, espirit=False) == 1
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").rglob("*.h5"))


def test_missing_maps_say_which_command_makes_them(tmp_path, capsys):
    scan(tmp_path / "kspace", "scan")
    assert prepare(tmp_path, espirit=False) == 1
    assert "rsdmri-espirit" in capsys.readouterr().err


def with_zero_filling(path, left, right):
    """The scan as a scanner writes it that acquired only the columns between; its header says which."""
    with h5py.File(path, "r+") as file:
        k = file["kspace"][()]
        k[..., :left] = k[..., k.shape[-1] - right :] = 0
        file["kspace"][...] = k
        width = k.shape[-1]
        text = file["ismrmrd_header"][()].decode()
        limits = f"<minimum>0</minimum><maximum>{width - left - right - 1}</maximum><center>{width // 2 - left}</center>"
        del file["ismrmrd_header"]
        file["ismrmrd_header"] = re.sub(r"(<kspace_encoding_step_1>).*(</kspace_encoding_step_1>)", rf"\g<1>{limits}\g<2>", text)


def test_zero_filled_columns_are_no_part_of_the_acceleration(tmp_path):
    with_zero_filling(scan(tmp_path / "kspace", "padded", size=(16, 32)), 6, 4)
    assert prepare(tmp_path, "--data.acs", "2") == 0
    data = opened(tmp_path)
    masks = torch.stack(data.mask)
    assert (masks.sum(1) == 22 // 4).all()
    assert not masks[:, :6].any()
    assert not masks[:, 28:].any()
    assert (tmp_path / "runs/x/prepare/references.h5").exists()
    thinned = data.law().thin(data.batch([0, 1]).operator, make_generator(0))
    assert (thinned.mask.sum(-1) == 4).all()  # floor(5 * 4 / 5)


def test_noise_is_not_read_off_rows_that_were_filled_with_zeros(tmp_path, generator):
    path = scan(tmp_path / "kspace", "scan", size=(64, 16))
    std = 0.3
    with h5py.File(path, "r+") as file:
        k = torch.from_numpy(file["kspace"][()])
        noise = torch.randn(*k.shape, 2, generator=generator, dtype=torch.float32)
        k = k + std * torch.view_as_complex(noise)
        k[:, :, :6] = k[:, :, -6:] = 0
        file["kspace"][...] = k.numpy()
        del file.attrs["noise_std"]
    assert prepare(tmp_path, "--data.acs", "2") == 0
    with h5py.File(tmp_path / "runs/x/prepare/observations.h5") as file:
        found = np.concatenate([group["noise_std"][()] * group["scale"][()] for group in file.values()])
    assert found == pytest.approx([std, std], rel=0.25)


def test_maps_of_another_file_of_that_name_are_refused(tmp_path, capsys):
    scan(tmp_path / "kspace", "scan")
    assert prepare(tmp_path) == 0
    scan(tmp_path / "kspace", "scan", noise_std=0.02)
    with h5py.File(tmp_path / "kspace" / "scan.h5", "r+") as file:
        file["kspace"][...] = file["kspace"][()][:, :, ::-1]
    assert prepare(tmp_path, espirit=False) == 1
    assert "made from another file of this name" in capsys.readouterr().err


def test_undersampled_scans_of_several_accelerations_are_learned_from_together(tmp_path, capsys):
    for name, columns in (("two", [4, 6, 7, 8, 9, 10, 13, 14]), ("fourr", [5, 6, 7, 8, 9, 13])):
        mask = np.zeros(16, bool)
        mask[columns] = True
        scan(tmp_path / "kspace", name, mask=mask)
    code = run("espirit", tmp_path / "kspace", "--out", tmp_path / "maps", "--workers", "1", "--calib", "5", "--kernel", "3")
    assert code == 0
    assert prepare(tmp_path, "--data.acs", "2", espirit=False) == 0
    assert "4 of 4 slices came undersampled and keep their masks (R = 2 to 2.67)" in capsys.readouterr().err
    data = opened(tmp_path)
    thinned = data.law().thin(data.batch(range(4)).operator, make_generator(0))
    assert sorted(thinned.mask.sum(-1).flatten().tolist()) == [4, 4, 6, 6]


@pytest.mark.parametrize("threads", [0, 3])
def test_a_data_set_that_does_not_fit_in_memory_reads_the_same(threads, tmp_path, monkeypatch):
    scan(tmp_path / "kspace", "four", coils=4)
    scan(tmp_path / "kspace", "sixsix", coils=6)
    assert prepare(tmp_path) == 0
    whole = opened(tmp_path)
    monkeypatch.setattr("rsdmri.mri.domain.fits", lambda size: False)
    monkeypatch.setattr("rsdmri.mri.domain.readers", lambda: ThreadPoolExecutor(threads) if threads else None)
    parts = opened(tmp_path)
    assert isinstance(parts.stores[0][0], Rows) and parts.stores[0][0].direct
    for indices in ([0, 3], [2, 1, 0]):
        ours, theirs = whole.batch(indices), parts.batch(indices)
        assert torch.equal(ours.y, theirs.y)
        assert torch.equal(ours.operator.maps, theirs.operator.maps)
    assert torch.equal(whole.law().banks[16, 16].maps, parts.law().banks[16, 16].maps)


def test_rows_are_read_past_hdf5_and_what_is_damaged_is_named(tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (3, 2, 8, 64), np.uint8).view(np.complex64)  # grows when it is compressed
    values = {"plain": np.zeros((3, 2, 8, 8), np.complex64), "noise": noise, "other": noise}
    path = tmp_path / "rows.h5"
    with h5py.File(path, "w") as file:
        for name, array in values.items():
            ours = {"compression": "gzip", "fletcher32": True, "shuffle": name == "other"}
            file.create_dataset(name, data=array, chunks=(1, *array.shape[1:]), **ours)
    with h5py.File(path, "r+") as file:
        for name, array in values.items():
            found = Rows(file[name])
            assert found.direct == (name != "other") and len(found) == 3
            assert all(np.array_equal(found[row].view(np.uint8), array[row].view(np.uint8)) for row in range(3))
        file["plain"].id.write_direct_chunk((1, 0, 0, 0), b"damaged!")
        with pytest.raises(UserError, match=r"rows.h5: /plain, row 1: damaged .*Prepare the data again"):
            Rows(file["plain"])[1]
        assert not Rows(file["plain"])[2].any()


@pytest.mark.parametrize(
    ("mine", "every", "processes", "threads"),
    [(8, 32, 4, 4), (32, 32, 4, 4), (32, 32, 1, 8), (2, 2, 1, None), (16, 16, 8, None)],
    ids=["cores of a task", "torchrun", "at most eight", "laptop", "one core a process"],
)
def test_half_of_the_cores_of_a_process_read(mine, every, processes, threads, monkeypatch):
    monkeypatch.setattr(rows.os, "cpu_count", lambda: every)
    monkeypatch.setattr(rows.os, "sched_getaffinity", lambda process: range(mine), raising=False)
    monkeypatch.setattr(rows, "local_size", lambda environment: processes)
    pool = rows.readers()
    assert (pool and pool._max_workers) == threads


def test_names_join_observations_and_references(tmp_path):
    """Groups by number of coils put the slices into another order than the files have."""
    for name, coils in (("a_six", 6), ("b_four", 4), ("c_six", 6)):
        scan(tmp_path / "kspace", name, coils=coils)
    assert prepare(tmp_path) == 0
    data = opened(tmp_path)
    images, names = MRI().references(tmp_path / "runs/x/prepare/references.h5", (16, 16))
    assert names == [f"{name}/{i}" for name in ("a_six", "b_four", "c_six") for i in (0, 1)]
    assert sorted(data.names) == sorted(names)
    assert data.names != names
    place = {name: i for i, name in enumerate(data.names)}
    obs = data.batch([place[name] for name in names])
    again = obs.operator.forward(images)  # the clean image, measured as its scan was, is nearly its observation
    error = (again - obs.y).flatten(1).norm(dim=1) / obs.y.flatten(1).norm(dim=1)
    assert error.max() < 0.3


def test_display_is_scaled_by_the_magnitudes_of_the_observations(tmp_path):
    scan(tmp_path / "kspace", "scan", size=(48, 48))
    assert prepare(tmp_path) == 0
    data = opened(tmp_path)
    obs = data.batch(range(len(data)))
    magnitudes = obs.operator.to_image(obs.y).abs().flatten()
    rank = int(len(magnitudes) * 0.001)
    assert data.law().display_max == pytest.approx(magnitudes.topk(rank).values[-1].item(), rel=1e-3)


def test_a_second_look_keeps_the_coils_and_draws_the_mask_anew(tmp_path):
    scan(tmp_path / "kspace", "one")
    scan(tmp_path / "kspace", "three")
    assert prepare(tmp_path) == 0
    law = opened(tmp_path).law()
    operator, _ = law.draw(64, (16, 16), make_generator(0))
    again = law.rescan(operator, make_generator(1))
    assert torch.equal(again.maps, operator.maps)
    assert (again.mask.sum(-1) == operator.mask.sum(-1)).all()
    same = (again.mask == operator.mask).flatten(1).all(1).double().mean()
    assert same < 0.2  # two masks of 16 columns may be the same by chance


def test_data_of_another_objective_are_checked_again(tmp_path, capsys):
    """R = 7 leaves 4 columns of 32, the ACS lines alone: good for Standard, nothing to thin for Ambient."""
    scan(tmp_path / "kspace", "a", size=(32, 32))
    flags = ["--data.accel", "7", "--data.acs", "4", "--config", "mri/demo"]
    assert prepare(tmp_path, *flags, "--objective.kind", "standard") == 0
    where = ["--runs", tmp_path / "runs", "--name", "x"]
    assert run("pretrain", *flags, *where) == 1
    assert "must be fewer than were measured" in capsys.readouterr().err
    assert not (tmp_path / "runs/x/pretrain").exists()


@pytest.mark.parametrize(("flags", "message"), [(("--data.size", "8", "8"), "16 x 16"), (("--data.noise-std", "3"), "noise_std")])
def test_what_belongs_to_the_data_cannot_be_asked_for_later(tmp_path, flags, message, capsys):
    scan(tmp_path / "kspace", "a")
    assert prepare(tmp_path) == 0
    assert run("pretrain", "--runs", tmp_path / "runs", "--name", "x", *flags) == 1
    assert message in capsys.readouterr().err


def broken_kspace(file, kind):
    del file["kspace"]
    if kind == "empty":
        file["kspace"] = h5py.Empty("complex64")
    if kind == "text":
        file["kspace"] = np.array([b"a", b"b"])
    if kind == "pairs":
        file["kspace"] = np.zeros((2, 4, 16, 16), [("a", "S3"), ("b", "S3")])


@pytest.mark.parametrize("kind", ["empty", "text", "pairs"])
def test_kspace_that_is_no_numbers(tmp_path, kind, capsys):
    path = scan(tmp_path / "kspace", "a")
    with h5py.File(path, "r+") as file:
        broken_kspace(file, kind)
    assert run("espirit", path, "--out", tmp_path / "maps", "--workers", "1") == 1
    error = capsys.readouterr().err
    assert "unexpected" not in error
    assert "not complex" in error


@pytest.mark.parametrize("kind", ["equispaced", "fastmri_random", "fastmri_equispaced"])
def test_other_patterns_are_kept_with_the_data_and_drawn_from_them(tmp_path, kind, capsys):
    for number in range(6):
        scan(tmp_path / "kspace", "x" * (number + 1), size=(16, 64))
    assert prepare(tmp_path, "--data.mask", kind, "--data.acs", "4", "--config", "mri/demo") == 0
    assert "drawn for 12 slices; data.accel is 4" in capsys.readouterr().err
    data = opened(tmp_path, "mri/demo")
    masks = torch.stack(data.mask)
    if kind == "equispaced":
        assert (masks.sum(1) == 16).all()
    else:
        expected = fastmri_columns("xxx.h5", 64, 4, 4 / 64, kind.removeprefix("fastmri_"))
        assert torch.equal(masks[data.names.index("xxx/0")], expected)
    law = data.law()
    drawn = law.draw(50, (16, 64), make_generator(0))[0].mask[:, 0, 0]
    assert {tuple(m.tolist()) for m in drawn} <= {tuple(m.tolist()) for m in masks}


def test_two_sets_of_maps_are_not_for_training(tmp_path, capsys):
    scan(tmp_path / "kspace", "a")
    assert run("espirit", tmp_path / "kspace", "--out", tmp_path / "maps", "--workers", "1", "--calib", "12", "--sets", "2") == 0
    assert prepare(tmp_path, espirit=False) == 1
    assert "its maps have 2 sets, and training takes one" in capsys.readouterr().err


def test_coils_are_compressed_on_demand(tmp_path):
    scan(tmp_path / "kspace", "a", coils=6)
    assert prepare(tmp_path, "--coils", "3") == 0
    with h5py.File(tmp_path / "runs/x/prepare/observations.h5") as file:
        maps = file["coils_3_16x16/maps"][()]
    norm = np.linalg.norm(maps, axis=1)
    assert np.allclose(norm[norm > 0], 1, atol=1e-5)


def test_noise_scans_are_used_for_whitening(tmp_path):
    path = scan(tmp_path / "kspace", "a", coils=4)
    root = np.random.default_rng(0).normal(size=(4, 4)) + 2 * np.eye(4)
    covariance = (1e-3 * root @ root.T).astype(complex)
    with h5py.File(path, "r+") as file:
        del file.attrs["noise_std"]
        file["noise_covariance"] = covariance
    assert prepare(tmp_path) == 0
    with h5py.File(tmp_path / "runs/x/prepare/observations.h5") as file:
        assert np.concatenate([group["noise_std"][()] * group["scale"][()] for group in file.values()]) == pytest.approx(
            [0.5**0.5] * 2, rel=1e-5
        )
    with h5py.File(path, "r+") as file:
        file["noise_covariance"][...] = np.nan
    assert run("espirit", tmp_path / "kspace", "--out", tmp_path / "maps", "--workers", "1", "--calib", "12") == 1


def test_several_workers_make_the_same_files(tmp_path, capsys):
    """Scans in their order, whoever finishes first; what one of them finds wrong is said as by one worker, and nothing appears."""
    for name, size in (("a", (16, 16)), ("bb", (24, 16)), ("ccc", (16, 16))):
        scan(tmp_path / "kspace", name, size=size)
    scan(tmp_path / "apart", "dddd")
    assert run("espirit", tmp_path / "apart", "--out", tmp_path / "maps", "--workers", "1", "--calib", "12") == 0
    apart = ("--data.references", tmp_path / "apart")
    contents = []
    for workers in ("1", "2"):
        assert prepare(tmp_path, "--data.workers", workers, *apart) == 0
        contents.append(contents_of(tmp_path / "runs/x/prepare"))
    one, two = contents
    assert one.keys() == two.keys() and len(one) > 10
    assert all(np.array_equal(one[name], two[name]) for name in one)
    with h5py.File(tmp_path / "kspace/bb.h5", "r+") as file:
        del file["kspace"]
    capsys.readouterr()
    assert prepare(tmp_path, "--data.workers", "2", "--name", "broken", espirit=False) == 1
    assert "bb.h5" in capsys.readouterr().err
    assert not (tmp_path / "runs/broken/prepare/observations.h5").exists()


def contents_of(folder):
    """Everything in the files of a data set, but for the configuration."""
    found = {}
    for path in (folder / "observations.h5", folder / "references.h5"):
        with h5py.File(path) as file:
            names = [file.name]
            file.visit(names.append)
            for name in names:
                item = file[name]
                found |= {f"{path.stem} {name} {key}": value for key, value in item.attrs.items() if key != "config"}
                if isinstance(item, h5py.Dataset):
                    found[f"{path.stem} {name}"] = item[()]
    return found
