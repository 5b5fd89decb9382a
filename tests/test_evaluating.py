"""Sets of images that any program made, and reconstructions beside their targets, through the command as users run it."""

import json

import h5py
import numpy as np
import pytest
from commands import run_command
from PIL import Image

from rsdmri.errors import UserError
from rsdmri.evaluating import table_of
from rsdmri.files import read_json
from rsdmri.image_sets import preprocessing_of, read_set, volumes_in
from rsdmri.mri.__main__ import APPLICATION


def pictures(n, seed, size=16):
    """Display values in [0, 1] of 8 bits: blobs."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    centre, width = rng.uniform(-0.5, 0.5, (2, n, 1, 1)), rng.uniform(0.2, 0.6, (n, 1, 1))
    return np.rint(255 * np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / width**2)) / 255


def write_h5(path, images, name="images"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file[name] = images
    return path


def write_pictures(folder, images):
    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(np.rint(255 * image).astype(np.uint8)).save(folder / f"{number:04d}.png")
    return folder


def evaluate(tmp_path, *arguments):
    code = run_command(APPLICATION, "evaluate", *arguments, "--out", tmp_path / "out", "--evaluate.bootstrap", 20)
    return code, read_json(tmp_path / "out" / "metrics.json") if code == 0 else None


def test_one_set_in_every_format_gives_one_number(tmp_path, capsys):
    reference, images = pictures(64, 0), pictures(32, 1)
    paths = {
        "h5": write_h5(tmp_path / "a.h5", images),
        "png": write_pictures(tmp_path / "png", images),
        "npy": tmp_path / "a.npy",
        "npz": tmp_path / "a.npz",
        "bytes": write_h5(tmp_path / "b.h5", np.rint(255 * images).astype(np.uint8)),
    }
    np.save(paths["npy"], images.astype(np.float32))
    np.savez(paths["npz"], images=images)
    named = [f"{name}={path}" for name, path in paths.items()]
    code, found = evaluate(tmp_path, "--reference", write_h5(tmp_path / "ref.h5", reference), "--samples", *named)
    assert code == 0
    assert found["n"] == 32 and found["features"] == "bands" and found["preprocessing"]["values"] == "unit"
    assert found["versions"]["torch"] and found["bootstrap"] == 20
    assert all(row["metrics"] == found["rows"][0]["metrics"] for row in found["rows"])
    scores = found["rows"][0]["metrics"]
    assert set(scores) == {"swd", "psd", "frechet", "kid", "precision", "recall", "density", "coverage"}
    assert all(score["low"] <= score["value"] <= score["high"] for score in scores.values())
    output = capsys.readouterr()
    assert output.out.strip() == str(tmp_path / "out" / "metrics.json")
    assert "32 images a side" in output.err and "frechet" in output.err


def test_complex_images_are_scaled_by_the_reference_and_their_phase_counts(tmp_path):
    rng = np.random.default_rng(0)

    def scan(seed, phase):
        return (3e-5 * pictures(40, seed) * np.exp(1j * (phase * np.arange(16) + rng.uniform(size=(40, 1, 1))))).astype(
            np.complex64
        )

    reference = write_h5(tmp_path / "ref.h5", scan(0, 0.1))
    rows = [f"same={write_h5(tmp_path / 'a.h5', scan(1, 0.1))}", f"turned={write_h5(tmp_path / 'b.h5', scan(1, 0.4))}"]
    code, found = evaluate(tmp_path, "--reference", reference, "--samples", *rows, "--evaluate.metrics", "swd", "phase")
    same, turned = (row["metrics"] for row in found["rows"])
    assert code == 0 and found["preprocessing"]["white"] == pytest.approx(3e-5, rel=0.05)
    assert same["swd"] == turned["swd"]
    assert turned["phase"]["value"] > 10 > 2 * same["phase"]["value"]


def test_reconstructions_are_measured_volume_by_volume(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for number in range(3):
        target = pictures(4, number, 20) * 1e-5
        write_h5(tmp_path / "targets" / f"scan{number}.h5", target, "reconstruction_rss")
        padded = np.pad(target + 1e-7 * rng.standard_normal(target.shape), ((0, 0), (4, 4), (0, 2)))
        write_h5(tmp_path / "l1" / f"scan{number}.h5", padded, "reconstruction")
    code, found = evaluate(tmp_path, "--reference", tmp_path / "targets", "--samples", f"l1={tmp_path / 'l1'}", "--paired")
    assert code == 0 and found["n"] == 3
    (row,) = found["rows"]
    assert set(row["volumes"]) == {"scan0", "scan1", "scan2"}
    # The image was padded by two columns, of which a cut about the centre takes one off each side.
    assert row["mean"]["psnr"] < 30
    assert row["mean"]["psnr"] == pytest.approx(np.mean([v["psnr"] for v in row["volumes"].values()]))
    assert "3 volumes, mean ± standard error" in capsys.readouterr().err


def test_an_even_border_is_cut_exactly(tmp_path):
    target = pictures(4, 0, 20)
    write_h5(tmp_path / "t" / "a.h5", target)
    write_h5(tmp_path / "r" / "a.h5", np.pad(target, ((0, 0), (4, 4), (2, 2))))
    code, found = evaluate(tmp_path, "--reference", tmp_path / "t", "--samples", f"r={tmp_path / 'r'}", "--paired")
    assert code == 0 and found["rows"][0]["mean"]["nmse"] == 0 and found["rows"][0]["mean"]["psnr"] is None


def test_outside_the_support_of_a_target_nothing_counts_inside_it(tmp_path):
    target = pictures(4, 0, 20)
    target[:, :6] = 0
    image = np.where(target > 0, 0.9 * target, 0.5)
    write_h5(tmp_path / "t" / "a.h5", target)
    write_h5(tmp_path / "r" / "a.h5", image)
    _, found = evaluate(tmp_path, "--reference", tmp_path / "t", "--samples", f"r={tmp_path / 'r'}", "--paired")
    mean = found["rows"][0]["mean"]
    assert mean["inside_nmse"] == pytest.approx(0.01) and mean["nmse"] > 0.05


def test_colour_is_taken_in_both_ranges(tmp_path):
    rng = np.random.default_rng(0)
    symmetric = rng.uniform(-1, 1, (4, 8, 8, 3))
    values = preprocessing_of(symmetric, tmp_path)
    assert values.values == "symmetric"
    bytes_ = np.rint((symmetric + 1) * 127.5).astype(np.uint8)
    assert np.abs(values(symmetric, tmp_path) - values(bytes_, tmp_path)).max() <= 1 / 255 + 1e-6


BAD = {
    "nothing there": ("gone.h5", 1, "gone.h5: no such file"),
    "no samples": (None, 2, "--samples NAME=PATH"),
    "text": ("text.h5", 1, "text.h5: not a readable HDF5 file"),
    "no images": ("kspace.h5", 1, "holds kspace; expected one of images"),
    "another size": ("large.h5", 1, "20 x 20, and the reference"),
    "other values": ("magnitudes.h5", 1, "magnitudes.h5: float64 from 0 to 40, and the reference holds values in [0, 1]"),
    "too few": ("few.h5", 1, "at least 16 samples"),
    "NaN": ("nan.h5", 1, "NaN or infinity"),
    "constant": ("constant.h5", 1, "constant.h5: every image of a set is constant"),
    "torn picture": ("torn", 1, "0003.png: image file is truncated"),
    "negative": ("negative.h5", 1, "from -30 to"),
    "wrong integers": ("long.h5", 1, "the reference holds values in [0, 1]. Expected floating point between 0 and 1, or bytes"),
    "empty folder": ("empty", 1, "no images found"),
    "objects": ("objects.npy", 1, "not a readable .npy file"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_said(name, tmp_path, capsys):
    file, code, message = BAD[name]
    images = pictures(40, 1)
    (tmp_path / "text.h5").write_text("no")
    write_h5(tmp_path / "kspace.h5", images, "kspace")
    write_h5(tmp_path / "large.h5", pictures(40, 1, 20))
    write_h5(tmp_path / "magnitudes.h5", 40 * images)
    write_h5(tmp_path / "few.h5", images[:7])
    write_h5(tmp_path / "nan.h5", np.where(images > 0.9, np.nan, images))
    write_h5(tmp_path / "constant.h5", np.full((40, 16, 16), 0.75))
    write_h5(tmp_path / "long.h5", np.ones((40, 16, 16), np.int64))
    write_h5(tmp_path / "negative.h5", np.where(images > 0.9, -30.0, images))
    torn = write_pictures(tmp_path / "torn", images) / "0003.png"
    torn.write_bytes(torn.read_bytes()[:60])
    (tmp_path / "empty").mkdir()
    np.save(tmp_path / "objects.npy", np.array([{}] * 3, object), allow_pickle=True)
    reference = write_h5(tmp_path / "ref.h5", pictures(80, 0))
    samples = [] if file is None else ["--samples", f"a={tmp_path / file}"]
    found, _ = evaluate(tmp_path, "--reference", reference, *samples)
    assert found == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "metrics.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--paired"], "name their file or folder with --reference"),
        (["--evaluate.features", "vgg"], "bands, inception or torchscript"),
    ],
)
def test_a_wrong_command_line_is_said(arguments, message, tmp_path, capsys):
    reference = write_h5(tmp_path / "ref.h5", pictures(80, 0))
    samples = ["--samples", f"a={write_h5(tmp_path / 'a.h5', pictures(40, 1))}"]
    given = [*samples, *arguments] if arguments == ["--paired"] else ["--reference", reference, *samples, *arguments]
    assert evaluate(tmp_path, *given)[0] == 2
    assert message in capsys.readouterr().err


def shown(images, reference, place="here"):
    return preprocessing_of(reference, place)(images, place)


def test_the_reference_decides_what_values_mean():
    unit, rng = pictures(40, 0), np.random.default_rng(0)
    assert preprocessing_of(unit, "").values == "unit"
    overshot = unit.copy()
    overshot[0, 0, 0] = -0.01  # a generator's value: clipped, and not taken for [-1, 1]
    assert np.abs(shown(overshot, unit) - shown(unit, unit)).max() < 0.01
    symmetric = 2 * unit - 1
    assert preprocessing_of(symmetric, "").values == "symmetric"  # grey, too
    assert np.abs(shown(symmetric, symmetric) - shown(unit, unit)).max() < 0.01
    bright = np.abs(symmetric)  # no negative value: still [-1, 1], because the reference is
    assert np.abs(shown(bright, symmetric) - (bright + 1) / 2).max() < 0.01
    as_bytes = np.rint(255 * unit).astype(np.uint8)
    for images in (unit, symmetric, as_bytes):
        assert np.abs(shown(images, as_bytes) - unit).max() < 0.01
    dim = 0.4 * unit  # a dim generator is dim, and no other kind of values
    assert np.abs(shown(dim, unit) - dim).max() < 0.01
    magnitudes = 1e-5 * unit * np.exp(1j * rng.uniform(size=unit.shape))
    assert np.abs(shown(0.5 * magnitudes, magnitudes) - 0.5 * unit).max() < 0.01
    words = (4000 * unit).astype(np.uint16)  # 12 bits in 16
    assert np.abs(shown(words, words) - unit).max() < 0.01


@pytest.mark.parametrize(
    ("images", "reference", "message"),
    [
        (lambda u: 2 * u - 1, lambda u: u, "Expected floating point between 0 and 1"),
        (lambda u: u, lambda u: 1e-5 * u, "in the units of the reference"),
        (lambda u: -1e-5 * u, lambda u: 1e-5 * u, "in the units of the reference"),
        (lambda u: 2 * u - 1, lambda u: 30 * u, "in the units of the reference"),
        (lambda u: u + 0j, lambda u: u, "complex images, .* Give magnitudes"),
        (lambda u: (255 * u).astype(np.uint8), lambda u: 30 * u, "bytes, and the reference holds magnitudes"),
        (lambda u: 255 * u, lambda u: (255 * u).astype(np.uint8), "the reference holds bytes. Expected floating point"),
        (lambda u: u, lambda u: -30 * u, "which are not negative"),
        (lambda u: u, lambda u: 0 * u, "all images are black"),
    ],
)
def test_values_that_cannot_be_those_of_the_reference_are_refused(images, reference, message):
    unit = pictures(40, 0)
    with pytest.raises(UserError, match=message):
        shown(images(unit), reference(unit))


def test_an_ordered_set_is_drawn_from_and_not_cut(tmp_path):
    """Two kinds of pictures, sorted: with the first half alone the distance would be that of one kind."""
    both = np.concatenate([pictures(80, 1), 1 - pictures(80, 2)])
    reference = write_h5(tmp_path / "ref.h5", np.concatenate([pictures(80, 3), 1 - pictures(80, 4)]))
    order = np.random.default_rng(0).permutation(160)
    rows = [f"sorted={write_h5(tmp_path / 'a.h5', both)}", f"mixed={write_h5(tmp_path / 'b.h5', both[order])}"]
    _, found = evaluate(tmp_path, "--reference", reference, "--samples", *rows, "--evaluate.metrics", "frechet")
    first, second = (row["metrics"]["frechet"] for row in found["rows"])
    assert first["value"] < 3 * max(second["value"], first["floor"])


def test_slices_of_one_file_are_in_one_part(tmp_path):
    """A folder of volumes whose slices are alike: the floor is between scans, as for an experiment's own references."""
    for folder, seeds in (("ref", range(12)), ("mine", range(20, 26))):
        for seed in seeds:
            noise = 0.01 * np.random.default_rng(seed).random((10, 16, 16))
            write_h5(tmp_path / folder / f"{seed}.h5", np.clip(pictures(1, seed) + noise, 0, 1))
    loose = [write_h5(tmp_path / f"{name}.h5", read_set(tmp_path / name)[0]) for name in ("ref", "mine")]
    found = {}
    for name, (reference, mine) in (("files", (tmp_path / "ref", tmp_path / "mine")), ("loose", loose)):
        code, result = evaluate(tmp_path, "--reference", reference, "--samples", f"mine={mine}")
        assert code == 0
        found[name] = result["rows"][0]["metrics"]["psd"]
        assert result["reference_files"] == (12 if name == "files" else None)
    assert found["files"]["floor"] > 2 * found["loose"]["floor"]
    width = {name: score["high"] - score["low"] for name, score in found.items()}
    assert width["files"] > 1.2 * width["loose"]


def test_pairs_of_real_images_are_taken_as_they_are(tmp_path):
    """As fastMRI takes them, negative values too; and of single-coil files the target of their challenge."""
    evaluated = pytest.importorskip("fastmri.evaluate")
    rng = np.random.default_rng(0)
    target = pictures(4, 0, 20)
    image = target + 0.2 * rng.standard_normal(target.shape)
    assert (image < 0).any()
    write_h5(tmp_path / "t" / "a.h5", 0.5 * target, "reconstruction_rss")
    with h5py.File(tmp_path / "t" / "a.h5", "a") as file:
        file["reconstruction_esc"] = target
    write_h5(tmp_path / "r" / "a.h5", image, "reconstruction")
    code, found = evaluate(tmp_path, "--reference", tmp_path / "t", "--samples", f"r={tmp_path / 'r'}", "--paired")
    mean = found["rows"][0]["mean"]
    assert code == 0
    for name in ("nmse", "psnr", "ssim"):
        assert mean[name] == pytest.approx(np.asarray(getattr(evaluated, name)(target, image)).item(), rel=1e-6)


def test_real_images_have_no_phase(tmp_path, capsys):
    reference = write_h5(tmp_path / "ref.h5", pictures(80, 0))
    samples = f"a={write_h5(tmp_path / 'a.h5', pictures(40, 1))}"
    code, _ = evaluate(tmp_path, "--reference", reference, "--samples", samples, "--evaluate.metrics", "phase")
    assert code == 1 and "phase is a distance of complex images" in capsys.readouterr().err


def test_a_constant_reference_is_named(tmp_path, capsys):
    reference = write_h5(tmp_path / "ref.h5", np.full((80, 16, 16), 0.75))
    code, _ = evaluate(tmp_path, "--reference", reference, "--samples", f"a={write_h5(tmp_path / 'a.h5', pictures(40, 1))}")
    assert code == 1 and "ref.h5: every image of a set is constant" in capsys.readouterr().err


def test_files_of_one_name_in_several_folders_are_several(tmp_path):
    for folder in ("a", "b"):
        write_h5(tmp_path / folder / "scan.h5", pictures(4, ord(folder)))
    assert set(volumes_in(tmp_path)) == {"a/scan", "b/scan"} and len(read_set(tmp_path)[0]) == 8


def test_grey_pictures_of_16_bits_stay_grey(tmp_path):
    for number, image in enumerate(pictures(3, 0)):
        Image.fromarray((60000 * image).astype(np.uint16)).save(tmp_path / f"{number}.png")
    assert read_set(tmp_path)[0].shape == (3, 16, 16) and read_set(tmp_path)[0].dtype.itemsize >= 2


def test_empty_slices_and_exact_volumes_do_not_hide_the_others(tmp_path):
    for number in range(2):
        target = pictures(4, number, 20)
        target[3] = 0  # beyond the head
        image = target if number == 0 else 0.9 * target
        write_h5(tmp_path / "t" / f"{number}.h5", target)
        write_h5(tmp_path / "r" / f"{number}.h5", image)
    code, found = evaluate(tmp_path, "--reference", tmp_path / "t", "--samples", f"r={tmp_path / 'r'}", "--paired")
    (row,) = found["rows"]
    assert code == 0 and row["volumes"]["0"]["psnr"] is None
    assert row["mean"]["psnr"] == row["volumes"]["1"]["psnr"] and row["mean"]["nmse"] == pytest.approx(0.005)
    assert row["volumes"]["1"]["slice_psnr"] > 0


def test_a_row_is_named_once(tmp_path, capsys):
    reference = write_h5(tmp_path / "ref.h5", pictures(80, 0))
    assert evaluate(tmp_path, "--reference", reference, "--samples", "a=x.h5", "a=y.h5")[0] == 2
    assert "'a' is named twice" in capsys.readouterr().err


def test_a_missing_reconstruction_is_named(tmp_path, capsys):
    write_h5(tmp_path / "t" / "a.h5", pictures(4, 0))
    write_h5(tmp_path / "r" / "b.h5", pictures(4, 0))
    assert evaluate(tmp_path, "--reference", tmp_path / "t", "--samples", f"r={tmp_path / 'r'}", "--paired")[0] == 1
    assert "no reconstruction of a" in capsys.readouterr().err


def test_images_of_several_sizes_in_one_folder_are_refused(tmp_path):
    write_h5(tmp_path / "a" / "1.h5", pictures(4, 0))
    write_h5(tmp_path / "a" / "2.h5", pictures(4, 0, 20))
    with pytest.raises(UserError, match="several sizes or kinds"):
        read_set(tmp_path / "a")


def test_the_table_fits_a_terminal():
    score = {"value": 123.456, "floor": 5.4321, "n": 400, "low": 120.0, "high": 130.123}
    rows = [
        {"name": name, "metrics": {"swd": score, "coverage": score}, "proximal": {}} for name in ("observation", "teacher", "rsd")
    ]
    table = table_of(json.loads(json.dumps({"n": 400, "features": "bands", "rows": rows})))
    assert max(map(len, table.splitlines())) <= 80
    assert "123 [120, 130]" in table and "5.43" in table
