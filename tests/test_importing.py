"""Published checkpoints: the same numbers, fed as they were trained; and files that would do harm, which must not."""

import contextlib
import io
import json
import pickle
import zipfile
from types import SimpleNamespace

import pytest
import torch
from commands import run_command
from published import SOURCE, Persistent, modules_of, random_tensors, song_forward, song_shapes, write_pickle

from rsdmri.checkpoints import load_model
from rsdmri.config import ImportConfig
from rsdmri.errors import UserError
from rsdmri.foreign import read_checkpoint
from rsdmri.importing import convert, import_checkpoint
from rsdmri.mri.__main__ import APPLICATION as MRI_PROGRAM
from rsdmri.mri.operators import MultiCoilMRI
from rsdmri_natural.__main__ import APPLICATION as NATURAL_PROGRAM

NETWORKS = {
    "EDM": {"inputs": 3, "outputs": 3, "resolution": 16, "augment": 9},
    "Ambient": {"inputs": 6, "outputs": 6, "resolution": 16, "augment": 9, "gated": True},
    "Ambient MRI": {"inputs": 4, "outputs": 4, "resolution": 16, "gated": True, "attention": ()},
    "L1-EDM": {"inputs": 2, "outputs": 2, "resolution": 16, "gated": True, "attention": ()},
}
SMALL = {"channels": 8, "multipliers": (1, 2, 2), "blocks": 2, "attention": (8,)}


def run(program, *arguments):
    """One command line in this process."""
    application, arguments = (
        (NATURAL_PROGRAM, arguments) if program == "rsdmri-natural" else (MRI_PROGRAM, (program[7:], *arguments))
    )
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        code = run_command(application, *arguments)
    return SimpleNamespace(returncode=code, stderr=stderr.getvalue())


def tensors_of(kind, dtype=torch.float32):
    return random_tensors(song_shapes(**{**SMALL, **NETWORKS[kind]}), dtype)


def imported(path, out, **options):
    return load_model(import_checkpoint(path, out, ImportConfig(**options)))


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("layout", ["modules", "state dict", "torch.save"])
def test_every_number_arrives_where_it_belongs(tmp_path, kind, layout):
    tensors = tensors_of(kind)
    path = tmp_path / "network-snapshot.pkl"
    if layout == "modules":
        write_pickle(path, modules_of(tensors), loss_fn=Persistent("EDMLoss"), dataset_kwargs={"resolution": 16})
    elif layout == "state dict":  # as torch.compile and EDM's preconditioning name it
        write_pickle(path, {f"_orig_mod.model.{name}": tensor for name, tensor in tensors.items()}, loss_fn=Persistent("Loss"))
    else:
        torch.save({f"module.model.{name}": tensor for name, tensor in tensors.items()}, path)
    denoiser, description = imported(path, tmp_path / "run")
    network = denoiser.network.double()
    generator = torch.Generator().manual_seed(3)
    inputs, augment = NETWORKS[kind]["inputs"], NETWORKS[kind].get("augment")
    x = torch.randn(2, inputs, 16, 16, dtype=torch.float64, generator=generator)
    c_noise = torch.tensor([-0.4, 0.7], dtype=torch.float64)
    labels = torch.randn(2, augment, dtype=torch.float64, generator=generator) if augment else None
    expected = song_forward({name: tensor.double() for name, tensor in tensors.items()}, x, c_noise, labels)
    assert torch.allclose(network(x, c_noise, labels), expected, rtol=0, atol=1e-10)
    assert sum(p.numel() for p in network.parameters()) == sum(t.numel() for t in tensors.values())
    assert sorted(p.double().sum().item() for p in network.parameters()) == pytest.approx(
        sorted(t.double().sum().item() for t in tensors.values()), abs=0
    )
    assert description.objective.kind == ("ambient" if inputs in (4, 6) else "standard")
    assert json.loads((tmp_path / "run/import.json").read_text())["parameters"] == sum(t.numel() for t in tensors.values())


PUBLISHED = {"blocks": 4, "attention": (16,), "channels": 128}
COUNTS = [
    ("CIFAR-10", {"inputs": 3, "outputs": 3, "resolution": 32, "multipliers": (2, 2, 2), "augment": 9}, 55_733_891),
    ("64x64", {"inputs": 3, "outputs": 3, "resolution": 64, "multipliers": (1, 2, 2, 2), "augment": 9}, 61_805_571),
    (
        "CelebA",
        {"inputs": 6, "outputs": 6, "resolution": 64, "multipliers": (1, 2, 2, 2), "augment": 9, "gated": True},
        118_088_966,
    ),
    ("MRI", {"inputs": 4, "outputs": 4, "resolution": 384, "multipliers": (1, 1, 1, 1), "gated": True}, 36_768_644),
    ("MRI, no masks", {"inputs": 2, "outputs": 2, "resolution": 384, "multipliers": (1, 1, 1, 1), "gated": True}, 36_759_426),
]


@pytest.mark.parametrize(("shape", "count"), [row[1:] for row in COUNTS], ids=[row[0] for row in COUNTS])
def test_published_networks_are_recognised_and_have_their_numbers_of_parameters(shape, count):
    from rsdmri.foreign import Checkpoint

    with torch.device("meta"):
        given = {name: torch.empty(s) for name, s in song_shapes(**{**PUBLISHED, **shape}).items()}
        from rsdmri import importing

        fields, resolutions, inputs = importing.architecture(given)
        assert (fields["channels"], fields["blocks"], inputs) == (128, 4, shape["inputs"])
        assert resolutions[0] == shape["resolution"]
    ones = {name: torch.ones(()).expand(s) for name, s in song_shapes(**{**PUBLISHED, **shape}).items()}
    description, tensors = convert(Checkpoint(ones), ImportConfig())
    assert sum(tensor.numel() for tensor in tensors.values()) == count
    assert description.size == ((384, 320) if shape["inputs"] in (2, 4) else (shape["resolution"],) * 2)


def test_the_mri_teacher_is_fed_as_it_was_trained(tmp_path):
    """Against the published way, written out: maps times a checkerboard, FFTs that are not centred, four scaled channels."""
    tensors = tensors_of("Ambient MRI")
    denoiser, _ = imported(write_pickle(tmp_path / "x.pkl", modules_of(tensors)), tmp_path / "run")
    g = torch.Generator().manual_seed(1)
    maps = torch.randn(2, 3, 16, 12, dtype=torch.complex128, generator=g)
    mask = torch.rand(2, 1, 1, 12, generator=g) < 0.5
    x_t = torch.randn(2, 1, 16, 12, dtype=torch.complex128, generator=g)
    sigma = torch.tensor([0.3, 5.0], dtype=torch.float64)
    checkerboard = (-1.0) ** (torch.arange(16)[:, None] + torch.arange(12))
    modulated = maps * checkerboard
    kspace = mask * torch.fft.fft2(modulated * x_t, norm="ortho")
    seen = (modulated.conj() * torch.fft.ifft2(kspace, norm="ortho")).sum(1)
    for i, s in enumerate(sigma):
        channels = torch.stack([seen[i].real, seen[i].imag, mask[i, 0].expand(16, 12).double(), torch.ones(16, 12).double()])
        f = song_forward(
            {n: t.double() for n, t in tensors.items()}, (channels / (s**2 + 0.25).sqrt())[None], (s.log() / 4)[None]
        )
        d = 0.25 / (s**2 + 0.25) * channels + 0.5 * s / (s**2 + 0.25).sqrt() * f[0]
        found = denoiser.double().denoise(x_t, sigma, MultiCoilMRI(maps, mask))[i, 0]
        assert torch.allclose(found, torch.complex(d[0], d[1]), rtol=0, atol=1e-9)


def test_the_inpainting_teacher_is_shown_three_scaled_masks(tmp_path):
    from rsdmri_natural.operators import Inpainting

    tensors = tensors_of("Ambient")
    denoiser, _ = imported(write_pickle(tmp_path / "x.pkl", modules_of(tensors)), tmp_path / "run")
    g = torch.Generator().manual_seed(1)
    mask = torch.rand(1, 1, 16, 16, generator=g) < 0.5
    x_t, s = torch.randn(1, 3, 16, 16, dtype=torch.float64, generator=g), 1.7
    channels = torch.cat([mask * x_t, mask.double().expand(1, 3, 16, 16)], dim=1)
    c_noise = torch.tensor([s], dtype=torch.float64).log() / 4
    f = song_forward({n: t.double() for n, t in tensors.items()}, channels / (s**2 + 0.25) ** 0.5, c_noise)
    d = 0.25 / (s**2 + 0.25) * channels + 0.5 * s / (s**2 + 0.25) ** 0.5 * f
    found = denoiser.double().denoise(x_t, torch.tensor([s], dtype=torch.float64), Inpainting(mask))
    assert torch.allclose(found, d[:, :3], rtol=0, atol=1e-9)


def test_an_imported_teacher_is_distilled_and_sampled(tmp_path):
    """EDM's photographs, without any data: the law is that of the configuration."""
    write_pickle(tmp_path / "edm.pkl", modules_of(tensors_of("EDM")))
    made = run("rsdmri-natural", "import", tmp_path / "edm.pkl", "--out", tmp_path / "teacher")
    assert made.returncode == 0, made.stderr
    common = ["--name", "n", "--runs", tmp_path, "--data.size", 16, "--data.corruption", "noise", "--objective.kind", "standard"]
    distilled = run(
        *("rsdmri-natural", "distill", *common, "--teacher", tmp_path / "teacher", "--distill.images", 4, "--distill.batch", 2)
    )
    assert distilled.returncode == 0, distilled.stderr
    sampled = run("rsdmri-natural", "sample", *common, "--sample.n", 2, "--run", tmp_path / "teacher", "--sample.steps", 3)
    assert sampled.returncode == 0, sampled.stderr
    plain = tensors_of("EDM")
    del plain["map_augment.weight"]
    write_pickle(tmp_path / "plain.pkl", modules_of(plain))
    assert run("rsdmri-natural", "import", tmp_path / "plain.pkl", "--out", tmp_path / "plain").returncode == 0
    mirrors = ["--network.augment", 9, "--pretrain.augment", 0.1, "--teacher", tmp_path / "plain", "--distill.images", 4]
    refused = run("rsdmri-natural", "distill", *common, *mirrors, "--distill.augment", 0.1)
    assert refused.returncode == 1
    assert "takes no augmentation label" in refused.stderr
    mri = run("rsdmri-sample", "--config", "mri/demo", "--runs", tmp_path, "--run", tmp_path / "teacher", "--sample.n", 2)
    assert mri.returncode == 1
    assert "3 channels" in mri.stderr


def test_a_one_step_generator_can_be_imported(tmp_path):
    path = write_pickle(tmp_path / "sid.pkl", modules_of(tensors_of("EDM")))
    _, description = imported(path, tmp_path / "run", role="generator", sigma_init=2.5)
    assert description.role == "generator"
    assert description.distill is not None
    assert description.distill.sigma_init == 2.5


# What is refused.


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


class Tensor(torch.Tensor):
    def __reduce_ex__(self, protocol):
        import os

        return os.system, (f"touch {self.canary}",)


def refused(path, tmp_path, *words):
    """The command ends with 1 and one line that names the file; nothing is written, and the canary is not there."""
    done = run("rsdmri-import", path, "--out", tmp_path / "run")
    assert done.returncode == 1, done.stderr
    assert not (tmp_path / "canary").exists()
    assert not (tmp_path / "run").exists()
    assert str(path) in done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


def test_a_pickle_that_calls_the_system_is_refused(tmp_path):
    import os

    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps({"ema": Call(os.system, f"touch {tmp_path / 'canary'}")}))
    refused(path, tmp_path, "system", "nothing was run")


@pytest.mark.parametrize("builtin", [eval, exec, getattr, __import__])
def test_pickles_that_call_builtins_are_refused(tmp_path, builtin):
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps({"ema": Call(builtin, "1")}))
    with pytest.raises(UserError, match=f"builtins.{builtin.__name__}"):
        read_checkpoint(path, 1 << 20)


@pytest.mark.parametrize(
    "line",
    [
        "import os; os.system('touch {canary}')",
        "from os import system as f; f('touch {canary}')",
        "import subprocess; subprocess.run(['touch', '{canary}'])",
        "__import__('os').system('touch {canary}')",
        "exec('import os')",
        "open('{canary}', 'w')",
    ],
)
def test_one_that_hides_it_in_the_embedded_source_is_refused(tmp_path, line):
    source = SOURCE + line.format(canary=tmp_path / "canary") + "\n"
    path = write_pickle(tmp_path / "evil.pkl", modules_of(tensors_of("EDM"), source))
    with pytest.raises(UserError, match=r"refused: the embedded source of \w+ asks for"):
        read_checkpoint(path, 1 << 30)
    assert not (tmp_path / "canary").exists()


def test_the_command_says_so(tmp_path):
    source = SOURCE + f"import os\nos.system('touch {tmp_path / 'canary'}')\n"
    refused(write_pickle(tmp_path / "evil.pkl", modules_of(tensors_of("EDM"), source)), tmp_path, "embedded source", "os.system")


def test_source_that_only_joins_paths_is_not_refused(tmp_path):
    source = SOURCE + "import os\n\ndef f(model):\n    model.eval()\n    return os.path.join('a', 'b')\n"
    path = write_pickle(tmp_path / "good.pkl", modules_of(tensors_of("EDM"), source))
    assert read_checkpoint(path, 1 << 30).class_name == "EDMPrecond"


def test_a_tensor_subclass_that_reduces_to_a_call_is_refused(tmp_path):
    tensor = torch.zeros(3).as_subclass(Tensor)
    tensor.canary = tmp_path / "canary"
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps({"ema": {"enc.16x16_conv.weight": tensor}}))
    refused(path, tmp_path, "system")
    torch.save({"ema": {"x": Call(__import__("os").system, f"touch {tmp_path / 'canary'}")}}, tmp_path / "evil.pt")
    refused(tmp_path / "evil.pt", tmp_path, "system")


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 28))
    refused(path, tmp_path, "compressed")
    with zipfile.ZipFile(tmp_path / "stored.pt", "w") as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 16))
    with pytest.raises(UserError, match="at most 1,024"):
        read_checkpoint(tmp_path / "stored.pt", 1024)


def test_pickles_that_exhaust_memory_are_refused(tmp_path):
    path = tmp_path / "evil.pkl"
    path.write_bytes(b"\x80\x04}r\xff\xff\xff\x7f.")  # the memo's place 2^31 - 1
    with pytest.raises(UserError, match="exhaust memory"):
        read_checkpoint(path, 1 << 20)
    rebuild, (storage, *_) = torch.zeros(4).__reduce_ex__(4)
    path.write_bytes(pickle.dumps({"ema": {"x": Call(rebuild, storage, 0, (1 << 40,), (0,), False, {})}}))
    with pytest.raises(UserError, match="in a storage of 4"):
        read_checkpoint(path, 1 << 20)


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused(tmp_path, kept):
    content = write_pickle(tmp_path / "x.pkl", modules_of(tensors_of("EDM"))).read_bytes()
    path = tmp_path / "cut.pkl"
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(UserError, match=r"cut\.pkl: not a (whole|readable) pickle"):
        read_checkpoint(path, 1 << 30)
    torch.save(tensors_of("EDM"), tmp_path / "x.pt")
    content = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[: 2 + int(kept * (len(content) - 2))])
    with pytest.raises(UserError, match=r"cut\.pt: not a"):
        read_checkpoint(tmp_path / "cut.pt", 1 << 30)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    path = write_pickle(tmp_path / "x.pkl", modules_of(tensors_of("EDM")))
    done = run("rsdmri-import", path, "--out", tmp_path / "run", "--max-bytes", 1000)
    assert done.returncode == 1
    assert "at most 1,000" in done.stderr


def altered(tmp_path, change):
    tensors = tensors_of("EDM")
    change(tensors)
    return write_pickle(tmp_path / "x.pkl", tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("enc.8x8_block1.norm1.bias"), r"missing: enc\.8x8_block1\.norm1\.bias$"),
        (lambda t: t.update({"enc.8x8_extra.weight": torch.zeros(2)}), r"unexpected: enc\.8x8_extra\.weight$"),
        (lambda t: t.update({"map_layer1.bias": torch.zeros(3)}), r"of another shape: map_layer1\.bias \(3,\), not \(32,\)$"),
        (lambda t: t["map_layer1.bias"].fill_(float("nan")), "NaN or infinity in map_layer1.bias"),
        (lambda t: t.update({"map_label.weight": torch.zeros(8, 10)}), "class labels"),
        (lambda t: t.clear() or t.update({"weight": torch.zeros(2)}), r"not a DDPM\+\+ network"),
        (lambda t: t.update({"enc.16x16_conv.weight": torch.zeros(8, 5, 3, 3)}), "5 input channels"),
    ],
)
def test_tensors_that_do_not_fit_are_listed(tmp_path, change, message):
    path = altered(tmp_path, change)
    with pytest.raises(UserError, match=message):
        import_checkpoint(path, tmp_path / "run", ImportConfig())
    assert not (tmp_path / "run").exists()


def test_other_architectures_are_named(tmp_path):
    network = modules_of(tensors_of("EDM"))
    network.__dict__["_names"] = ("VPPrecond", SOURCE)
    with pytest.raises(UserError, match="VPPrecond"):
        import_checkpoint(write_pickle(tmp_path / "x.pkl", network), tmp_path / "run", ImportConfig())
    filtered = modules_of(tensors_of("EDM"))
    dict(filtered.named_modules())["model.enc.8x8_down.conv0"].resample_filter = torch.ones(1, 1, 4, 4) / 16
    with pytest.raises(UserError, match="resampling filter"):
        import_checkpoint(write_pickle(tmp_path / "y.pkl", filtered), tmp_path / "run", ImportConfig())
    with pytest.raises(UserError, match="not shown any mask"):
        import_checkpoint(
            write_pickle(tmp_path / "z.pkl", modules_of(tensors_of("EDM"))), tmp_path / "run", ImportConfig(objective="ambient")
        )


def test_what_was_trained_here_is_not_overwritten(tmp_path):
    path = write_pickle(tmp_path / "x.pkl", modules_of(tensors_of("EDM")))
    (tmp_path / "run").mkdir()
    (tmp_path / "run/provenance.json").write_text("{}")
    with pytest.raises(UserError, match="Choose another place"):
        import_checkpoint(path, tmp_path / "run", ImportConfig())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update({"enc.16x16_conv.weight": torch.zeros(0, 3, 3, 3)}), "0 channels in the first level"),
        (lambda t: t.update({"map_layer1.bias": torch.zeros(32).to_sparse()}), "not dense"),
        (lambda t: t.update({"map_layer1.bias": torch.zeros(32, dtype=torch.complex64)}), "not dense"),
        (lambda t: t.update({"map_layer1.bias": torch.zeros(32, dtype=torch.int64)}), "not dense"),
        (lambda t: t.update({"enc.99999999999999999999x99999999999999999999_conv.weight": torch.zeros(8, 3, 3, 3)}), "DDPM"),
    ],
)
def test_tensors_of_odd_kinds_are_named(tmp_path, change, message):
    tensors = tensors_of("EDM")
    change(tensors)
    torch.save(tensors, tmp_path / "x.pt")
    with pytest.raises(UserError, match=message):
        import_checkpoint(tmp_path / "x.pt", tmp_path / "run", ImportConfig())


def test_what_is_no_file_is_not_opened(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(UserError, match="not a file"):
            read_checkpoint(path, 1 << 20)
    with pytest.raises(UserError, match="no such file"):
        read_checkpoint(tmp_path / "nothing", 1 << 20)
