"""Photographs as their owners distribute them, pictures of every mode, and files that are none."""

import io
import pickle
import zipfile
from typing import ClassVar

import numpy as np
import pytest
from commands import run_command
from PIL import Image as Picture

from rsdmri.errors import UserError
from rsdmri_natural.__main__ import APPLICATION
from rsdmri_natural.images import load_images, splits_of


def noise(seed=0, size=(20, 20), channels=3):
    return np.random.default_rng(seed).integers(0, 256, (*size, channels), np.uint8)


def write(path, seed=0, size=(20, 20), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Picture.fromarray(noise(seed, size)).save(path, **options)
    return path


def folder(tmp_path, n=12):
    for number in range(n):
        write(tmp_path / "p" / f"{number:03d}.png", number)
    return tmp_path / "p"


def names(path, split="all", size=16):
    return load_images(path, split, size, path.parent / "cache")[1]


def test_a_folder_and_a_zip_of_it_are_the_same(tmp_path):
    path = folder(tmp_path)
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        for file in sorted(path.iterdir()):
            archive.write(file, file.name)
        archive.writestr("__MACOSX/._000.png", b"")
    images, found = load_images(path, "all", 16, tmp_path / "cache")
    zipped, in_zip = load_images(tmp_path / "p.zip", "all", 16, tmp_path / "cache")
    assert found == in_zip == [f"{i:03d}.png" for i in range(12)]
    assert np.array_equal(images, zipped)
    expected = np.asarray(Picture.fromarray(noise(3)).resize((16, 16), Picture.Resampling.LANCZOS))
    assert np.array_equal(images[3], expected)


def test_pictures_are_read_once(tmp_path, monkeypatch):
    path = folder(tmp_path)
    images, found = load_images(path, "all", 16, tmp_path / "cache")
    monkeypatch.setattr("rsdmri_natural.images._read", None)
    again, same = load_images(path, "all", 16, tmp_path / "cache")
    assert np.array_equal(again, images)
    assert same == found
    monkeypatch.undo()
    write(path / "003.png", 77)  # a file that changed is read again
    assert not np.array_equal(load_images(path, "all", 16, tmp_path / "cache")[0][3], images[3])


def test_many_pictures_over_processes(tmp_path, capsys):
    path = folder(tmp_path, 210)
    images, _ = load_images(path, "all", 16, tmp_path / "cache")
    assert len(images) == 210
    expected = np.asarray(Picture.fromarray(noise(205)).resize((16, 16), Picture.Resampling.LANCZOS))
    assert np.array_equal(images[205], expected)
    assert "210/210 pictures" in capsys.readouterr().err


def test_a_hash_splits_where_nobody_else_does(tmp_path):
    path = folder(tmp_path, 40)
    parts = {split: names(path, split) for split in ("train", "val", "test")}
    assert sorted(sum(parts.values(), [])) == names(path)  # noqa: RUF017
    assert len(parts["train"]) > len(parts["test"]) > 0
    (path / "000.png").unlink()  # the others stay where they are
    assert names(path, "train") == [name for name in parts["train"] if name != "000.png"]


def test_celeba(tmp_path):
    """The owners' folders: the aligned photographs, 178 x 218, in an archive, and the list of the parts in another folder."""
    root = tmp_path / "CelebA"
    (root / "Img").mkdir(parents=True)
    (root / "Eval").mkdir()
    with zipfile.ZipFile(root / "Img/img_align_celeba.zip", "w") as archive:
        for number in range(1, 5):
            content = io.BytesIO()
            Picture.fromarray(noise(number, (218, 178))).save(content, "JPEG", progressive=True)
            archive.writestr(f"img_align_celeba/{number:06d}.jpg", content.getvalue())
    write(root / "Img/img_celeba/000001.jpg", 9, (50, 60))  # in the wild: the same name
    (root / "Eval/list_eval_partition.txt").write_text("000001.jpg 0\n000002.jpg 0\n000003.jpg 1\n000004.jpg 2\n")
    images, found = load_images(root, "train", 64, tmp_path / "cache")
    assert [name.rpartition("/")[2] for name in found] == ["000001.jpg", "000002.jpg"]
    assert len(names(root, "all", 64)) == 4
    content = io.BytesIO()
    Picture.fromarray(noise(2, (218, 178))).save(content, "JPEG", progressive=True)
    square = Picture.open(content).crop((0, 20, 178, 198)).resize((64, 64), Picture.Resampling.LANCZOS)
    assert np.array_equal(images[1], np.asarray(square))
    assert [name[-10:] for name in names(root, "test", 64)] == ["000004.jpg"]
    (root / "Eval/list_eval_partition.txt").write_text("<html>")
    with pytest.raises(UserError, match=r"list_eval_partition\.txt is not the list"):
        names(root, "train", 64)
    (root / "Eval/list_eval_partition.txt").unlink()
    with pytest.raises(UserError, match=r"nothing in the split 'train'; found in no split \(4\)"):
        names(root, "train", 64)


def test_celeba_hq(tmp_path):
    root = tmp_path / "CelebAMask-HQ"
    for number in range(3):
        write(root / "CelebA-HQ-img" / f"{number}.jpg", number)
    (root / "CelebA-HQ-to-CelebA-mapping.txt").write_text(
        "idx  orig_idx  orig_file\n0  119612  119613.jpg\n1  99094  099095.jpg\n2  3  000004.jpg\n"
    )
    write(root / "CelebAMask-HQ-mask-anno/0/00000_skin.png")  # a mask, and no photograph
    assert names(root) == [f"CelebA-HQ-img/{i}.jpg" for i in range(3)]
    with pytest.raises(UserError, match="found in no split"):
        names(root, "train")
    (root / "list_eval_partition.txt").write_text("119613.jpg 0\r\n099095.jpg 2\r\n000004.jpg 0\r\n", encoding="utf-8-sig")
    assert names(root, "train") == ["CelebA-HQ-img/0.jpg", "CelebA-HQ-img/2.jpg"]
    assert names(root, "test") == ["CelebA-HQ-img/1.jpg"]


def test_afhq_and_ffhq(tmp_path):
    for part, animal in (("train", "cat"), ("train", "dog"), ("test", "cat")):
        write(tmp_path / "afhq_v2" / part / animal / "pixabay_000002.png")
    assert names(tmp_path / "afhq_v2", "test") == ["test/cat/pixabay_000002.png"]
    assert len(names(tmp_path / "afhq_v2" / "train", "train")) == 2
    many = [f"thumbnails128x128/{number // 1000 * 1000:05d}/{number:05d}.png" for number in (0, 59_999, 60_000, 69_999)]
    assert list(splits_of(tmp_path, [*many, "LICENSE.txt"]).values()) == ["train", "train", "val", "val"]
    write(tmp_path / "ffhq" / many[2])
    assert names(tmp_path / "ffhq", "val") == [many[2]]


def test_pictures_outside_the_folders_of_the_splits(tmp_path, capsys):
    for name in ("Train/a.png", "Test/b.png", "overview.png"):
        write(tmp_path / "set" / name)
    assert names(tmp_path / "set", "train") == ["Train/a.png"]
    assert "1 pictures belong to no split" in capsys.readouterr().err
    assert len(names(tmp_path / "set", "all")) == 3


def test_links_are_followed_and_loops_are_not(tmp_path):
    write(tmp_path / "disk/a.png")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/train").symlink_to(tmp_path / "disk")
    (tmp_path / "set/train/loop").symlink_to(tmp_path / "set")
    assert names(tmp_path / "set", "train") == ["train/a.png"]
    (tmp_path / "set/broken.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match=r"broken.png: cannot be read"):
        names(tmp_path / "set", "train")


def test_what_the_runs_left_among_the_photographs_is_none(tmp_path):
    path = folder(tmp_path)
    for _ in range(2):
        assert len(load_images(path, "all", 16, path / "runs/images")[1]) == 12
        write(path / "runs/x/distill/samples.png")
    write(path / ".ipynb_checkpoints/000-checkpoint.png")
    assert len(load_images(path, "all", 16, path / "runs/images")[1]) == 12


def test_the_same_pictures_twice(tmp_path):
    path = folder(tmp_path)
    (tmp_path / "set").mkdir()
    path.rename(tmp_path / "set/p")
    with zipfile.ZipFile(tmp_path / "set/p.zip", "w") as archive:
        archive.write(tmp_path / "set/p/000.png", "000.png")
    with pytest.raises(UserError, match=r"p.zip: and a folder of the same name"):
        names(tmp_path / "set")


def test_an_archive_that_changed_is_opened_again(tmp_path):
    for shade in (0, 100):
        content = io.BytesIO()
        Picture.new("L", (16, 16), shade).save(content, "PNG")
        with zipfile.ZipFile(tmp_path / "a.ZIP", "w") as archive:
            archive.writestr("folder/", b"")
            archive.writestr("a.png", content.getvalue() + b" " * shade)
        assert (load_images(tmp_path / "a.ZIP", "all", 16, tmp_path / "cache")[0] == shade).all()


def test_a_damaged_cache_is_made_again(tmp_path):
    path = folder(tmp_path)
    images, _ = load_images(path, "all", 16, tmp_path / "cache")
    (kept,) = (tmp_path / "cache").iterdir()
    kept.write_bytes(kept.read_bytes()[:500])
    assert np.array_equal(load_images(path, "all", 16, tmp_path / "cache")[0], images)


def test_skipping_is_no_licence_for_those_who_do_not(tmp_path):
    path = folder(tmp_path)
    (path / "bad.png").touch()
    load_images(path, "all", 16, tmp_path / "cache", skip_bad=True)
    with pytest.raises(UserError, match="1 of 13"):
        load_images(path, "all", 16, tmp_path / "cache")


def test_strange_names(tmp_path):
    for name in ("Wow!/ä ö.png", "Wow!/b.PNG"):
        write(tmp_path / "p" / name)
    assert names(tmp_path / "p") == ["Wow!/b.PNG", "Wow!/ä ö.png"]
    write(tmp_path / "p/x.png").rename(tmp_path / "p" / b"caf\xe9.png".decode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match="not UTF-8"):
        names(tmp_path / "p")


def test_what_is_no_set_of_pictures(tmp_path):
    write(tmp_path / "one.png")
    with pytest.raises(UserError, match="expected a folder of pictures"):
        names(tmp_path / "one.png")


class AsPython2(pickle._Pickler):
    """Writes text and bytes as Python 2 wrote its strings."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_string(self, value):
        data = value if isinstance(value, bytes) else value.encode()
        self.write(b"T" + len(data).to_bytes(4, "little") + data)
        self.memoize(value)

    dispatch[bytes] = dispatch[str] = save_string


@pytest.mark.parametrize("form", ["python", "binary"])
def test_cifar(tmp_path, form):
    root = tmp_path / f"cifar-10-batches-{'py' if form == 'python' else 'bin'}"
    root.mkdir()
    rows = noise(0, (50, 3072), 1)[..., 0]
    for number, name in enumerate([f"data_batch_{i}" for i in range(1, 5)] + ["test_batch"]):
        part = rows[10 * number : 10 * number + 10]
        if form == "python":
            with open(root / name, "wb") as file:
                AsPython2(file, 2).dump({"data": part, "labels": list(range(10)), "batch_label": "one"})
        else:
            (root / f"{name}.bin").write_bytes(np.concatenate([np.zeros((10, 1), np.uint8), part], 1).tobytes())
    for place in (root, tmp_path):
        images, found = load_images(place, "train", 32, tmp_path.parent / f"cache-{form}")
        assert images.shape == (40, 32, 32, 3)
        assert np.array_equal(images[13], rows[13].reshape(3, 32, 32).transpose(1, 2, 0))
        assert found[:2] == ["train/0", "train/1"]
    assert np.array_equal(
        load_images(root, "test", 32, tmp_path.parent / f"cache-{form}")[0][0, 0, 1], rows[40].reshape(3, 32, 32)[:, 0, 1]
    )
    with pytest.raises(UserError, match="train and test, not 'val'"):
        names(root, "val", 32)


class Evil:
    def __reduce__(self):
        import os

        return os.system, ("touch executed",)


def test_nothing_in_a_batch_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "cifar-10-batches-py"
    root.mkdir()
    (root / "data_batch_1").write_bytes(pickle.dumps({b"data": Evil()}, 2))
    with pytest.raises(UserError, match=r"not a batch of CIFAR-10 .*system"):
        names(root, "train", 32)
    assert not (tmp_path / "executed").exists()


def test_no_other_program_is_started(tmp_path, monkeypatch):
    """Pillow gives PostScript to Ghostscript, whatever the file's name."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/executed\n")
    (tmp_path / "bin/gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    (tmp_path / "p").mkdir()
    (tmp_path / "p/evil.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n")
    with pytest.raises(UserError, match="not a picture"):
        names(tmp_path / "p")
    assert not (tmp_path / "executed").exists()


# ------------------------------------------------------------------ modes of pictures


def one(tmp_path, picture, name="a.png", size=16, **options):
    (tmp_path / "p").mkdir()
    picture.save(tmp_path / "p" / name, **options)
    return load_images(tmp_path / "p", "all", size, tmp_path / "cache")[0][0]


def test_grey_of_8_and_16_bits(tmp_path):
    grey = noise(0, (16, 16), 1)[..., 0]
    for part, picture in (
        ("8", grey),
        ("16", grey.astype(np.uint16) * 257),
        ("near", (grey.astype(int) * 257 - 100).clip(0).astype(np.uint16)),
    ):
        (tmp_path / part).mkdir()
        assert np.array_equal(one(tmp_path / part, Picture.fromarray(picture)), grey[..., None].repeat(3, -1))


def test_transparent_over_white(tmp_path):
    rgba = np.concatenate([noise(0, (16, 16)), np.full((16, 16, 1), 255, np.uint8)], -1)
    rgba[:8, :, 3] = 0
    found = one(tmp_path, Picture.fromarray(rgba))
    assert (found[:8] == 255).all()
    assert np.array_equal(found[8:], rgba[8:, :, :3])


def test_palette_with_a_transparent_colour(tmp_path):
    palette = Picture.fromarray(np.array([[0, 1], [1, 0]], np.uint8).repeat(8, 0).repeat(8, 1), "P")
    palette.putpalette([255, 0, 0, 0, 0, 255])
    found = one(tmp_path, palette, transparency=0)
    assert (found[0, 0] == 255).all()
    assert found[0, 15].tolist() == [0, 0, 255]


def test_cmyk(tmp_path):
    cmyk = Picture.new("CMYK", (16, 16), (0, 255, 255, 0))
    found = one(tmp_path, cmyk, "a.jpg", quality=95)
    assert np.abs(found.astype(int) - [255, 0, 0]).max() < 8


def test_rotated_by_exif(tmp_path):
    pixels = noise(0, (16, 24))
    exif = Picture.Exif()
    exif[0x0112] = 6  # turned by 90 degrees to the right
    found = one(tmp_path, Picture.fromarray(pixels), exif=exif)
    assert np.array_equal(found, np.rot90(pixels, -1)[4:20])


@pytest.mark.parametrize("kind", ["html", "truncated", "empty", "small", "float", "bomb"])
def test_bad_pictures_are_named_counted_and_skipped(tmp_path, kind, capsys, monkeypatch):
    path = folder(tmp_path)
    bad = path / "bad.png"
    if kind == "html":
        bad.write_text("<html>404</html>")
    if kind == "truncated":
        bad.write_bytes(write(path / "005.png", 5).read_bytes()[:-300])
    if kind == "empty":
        bad.touch()
    if kind == "small":
        write(bad, 0, (10, 30))
    if kind == "float":
        bad = path / "bad.tif"
        Picture.fromarray(np.zeros((20, 20), np.float32)).save(bad)
    if kind == "bomb":
        write(bad, 0, (60, 60))
        monkeypatch.setattr(Picture, "MAX_IMAGE_PIXELS", 1000)
    flags = ["--data.images", path, "--data.split", "all", "--data.size", "16", "--runs", tmp_path / "runs", "--name", "x"]
    assert run_command(APPLICATION, "prepare", *flags) == 1
    error = capsys.readouterr().err
    assert "1 of 13 pictures cannot be used (--skip-bad leaves them out)" in error
    assert f"{bad}: " in error
    assert not list((tmp_path / "runs").rglob("*.h5"))
    for _ in range(2):  # also where the others are kept already
        assert run_command(APPLICATION, "prepare", *flags, "--skip-bad") == 0
        error = capsys.readouterr().err
        assert "images: 1 pictures left out (data.skip_bad)" in error
        assert f"{bad}: " in error
    assert (tmp_path / "runs/x/prepare/observations.h5").exists()


def test_many_bad_pictures_are_not_all_listed(tmp_path):
    path = folder(tmp_path)
    for number in range(9):
        (path / f"bad{number}.png").touch()
    with pytest.raises(UserError) as error:
        names(path)
    assert str(error.value).count(".png: ") == 5
    assert str(error.value).endswith("... and 4 more")


def test_nothing_to_learn_from(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"nothing in the split 'train'; found no picture \(.bmp"):
        names(tmp_path / "empty", "train")
    with pytest.raises(UserError, match=r"nothing in the split 'vla'; found \w+ \(\d+\)"):
        names(folder(tmp_path), "vla")
    with pytest.raises(UserError, match="no such file or folder"):
        names(tmp_path / "nowhere")
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(UserError, match=r"broken.zip: not a readable .zip"):
        names(tmp_path / "broken.zip")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.png").touch()
    with pytest.raises(UserError, match="1 of 1 pictures cannot be used"):
        load_images(tmp_path / "bad", "all", 16, tmp_path / "cache", skip_bad=True)


# ------------------------------------------------------------------ arrays


def test_arrays_are_cut_to_squares_and_resized(tmp_path):
    np.savez(tmp_path / "a.npz", train=noise(0, (2, 24, 16 * 3), 1).reshape(2, 24, 16, 3))
    images, found = load_images(tmp_path / "a.npz", "train", 16, tmp_path / "cache")
    assert np.array_equal(images, np.load(tmp_path / "a.npz")["train"][:, 4:20])
    assert found == ["train/0", "train/1"]
    with pytest.raises(UserError, match=r"16 x 24, smaller than data\.size 32"):
        names(tmp_path / "a.npz", "train", 32)


def test_what_is_not_photographs_is_named(tmp_path):
    np.savez(tmp_path / "a.npz", train=np.zeros((2, 8, 8)), other=np.zeros((2, 8, 8, 3), np.uint8))
    with pytest.raises(UserError, match="no array 'val'; found train, other"):
        names(tmp_path / "a.npz", "val", 8)
    with pytest.raises(UserError, match="float64"):
        names(tmp_path / "a.npz", "train", 8)


@pytest.mark.parametrize("kind", ["empty", "objects", "none", "torn", "one", "text"])
def test_pictures_that_are_none(tmp_path, kind, capsys):
    path = tmp_path / "pictures.npz"
    good = noise(0, (4, 16 * 16), 3).reshape(4, 16, 16, 3)
    if kind == "empty":
        path.write_bytes(b"")
    if kind == "text":
        path.write_text("hello")
    if kind == "objects":
        np.savez(path, train=np.array([{}, {}], dtype=object))
    if kind == "none":
        np.savez(path, train=np.zeros((0, 16, 16, 3), np.uint8))
    if kind == "torn":
        np.savez(path, train=good)
        path.write_bytes(path.read_bytes()[:-200])
    if kind == "one":
        with open(path, "wb") as file:
            np.save(file, good)
    assert run_command(APPLICATION, "prepare", "--data.images", path, "--runs", tmp_path / "runs", "--name", "x") == 1
    assert f"error: {path}: " in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_no_photographs_given(tmp_path, capsys):
    assert run_command(APPLICATION, "prepare", "--runs", tmp_path) == 1
    assert "data.images" in capsys.readouterr().err


def test_a_missing_reference_split_leaves_nothing_behind(tmp_path, capsys):
    np.savez(tmp_path / "p.npz", train=noise(0, (4, 16 * 16), 3).reshape(4, 16, 16, 3))
    flags = ["--data.images", tmp_path / "p.npz", "--data.size", "16", "--data.reference-split", "nope"]
    assert run_command(APPLICATION, "prepare", *flags, "--runs", tmp_path / "runs", "--name", "x") == 1
    assert "no array 'nope'" in capsys.readouterr().err
    assert not list((tmp_path / "runs").rglob("observations.h5"))
