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
    path.write_bytes(b"\x80\x04}r\xff\xff\xff\x7f.")  # the memo's place 2^31 - 1, which costs nothing here
    with pytest.raises(UserError, match="no network"):
        read_checkpoint(path, 1 << 20)
    rebuild, (storage, *_) = torch.zeros(4).__reduce_ex__(4)
    for size, stride, message in [
        ((1 << 40,), (0,), "in a storage of 4"),
        ((4, 4), (0, 1), "in a file of"),  # more numbers than are there
        (("4" * 1000,), (1,), "in a storage of 4"),
        ((-1,), (1,), "in a storage of 4"),
        ((4,), (2,), "storage"),
    ]:
        many = {f"x{i}": Call(rebuild, storage, 0, size, stride, False, {}) for i in range(200)}
        path.write_bytes(pickle.dumps({"ema": many}))
        with pytest.raises(UserError, match=message):
            read_checkpoint(path, 1 << 20)
    tensors = {f"x{i}": torch.zeros(1).expand(1 << 14) for i in range(20)}
    torch.save(tensors, path)
    with pytest.raises(UserError, match="in a file of"):
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
        (lambda t: t.update({"map_layer1.bias": torch.zeros(32).to_sparse()}), "sparse"),
        (lambda t: t.update({"map_layer1.bias": torch.zeros(32, dtype=torch.complex64)}), "complex64"),
        (lambda t: t.update({"map_layer1.bias": torch.zeros(32, dtype=torch.int64)}), "int64"),
        (lambda t: t.update({"\x1b[2Jx": torch.zeros(2)}), r"unexpected: \?\[2Jx$"),
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


@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol_of_pickles_is_read(tmp_path, protocol):
    tensors = tensors_of("EDM")
    read = read_checkpoint(write_pickle(tmp_path / "x.pkl", modules_of(tensors), protocol), 1 << 30)
    assert read.dropout == 0.13
    assert {name.removeprefix("model.") for name in read.tensors} >= tensors.keys()
    read = read_checkpoint(write_pickle(tmp_path / "y.pkl", tensors, protocol), 1 << 30)
    assert all(torch.equal(read.tensors[name], tensor) for name, tensor in tensors.items())


def test_old_files_of_torch_save_are_read(tmp_path):
    tensors = tensors_of("EDM")
    torch.save({"net": tensors, "optimizer_state": {"step": 3}}, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    assert read_checkpoint(tmp_path / "x.pt", 1 << 30).tensors.keys() == tensors.keys()


def nested_key(depth):
    """A dictionary with a tuple of tuples of ... as its key, which a hash would follow to the bottom."""
    return b"\x80\x04})" + b"\x85" * depth + b"K\x01s."


HOSTILE = {
    # A state that would make numpy follow bytes of the file as an object.
    "object dtype": b"\x80\x02cnumpy\nndarray\n(K\x01\x85cnumpy\ndtype\nX\x02\x00\x00\x00V8\x85R"
    b"(K\x03X\x01\x00\x00\x00|NN)K\x08K\x01K\x01tbC\x08AAAAAAAAtR.",
    "object array": b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
    b"(K\x01K\x03\x85cnumpy\ndtype\nX\x01\x00\x00\x00O\x85R\x89]tb.",
    "state of a function": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x04\x00\x00\x00evilK\x01sb.",
    "nested key": nested_key(2_000_000),
    "encoded again and again": b"\x80\x02c_codecs\nencode\nX\x02\x00\x00\x00xxX\x03\x00\x00\x00hex\x86R.",
    "large shape": b"\x80\x02ctorch\nSize\ncnumpy\nndarray\nJ\x00\xe1\xf5\x05\x85R\x85R.",
    "persistent id": b"\x80\x02Px\n.",
    "extension": b"\x80\x02\x82\x01.",
    "instance": b"(ios\nsystem\n.",
    "nothing": b"",
    "an end without a beginning": b"\x80\x02t.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused(tmp_path, name):
    path = tmp_path / "evil.pkl"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(UserError, match=r"evil\.pkl: (refused|not a whole pickle|no network)"):
        read_checkpoint(path, 1 << 30)


def test_the_state_of_a_tensor_is_not_set(tmp_path):
    """torch's own way would let the file say where its numbers are."""
    rebuild, arguments = torch.zeros(4).__reduce_ex__(4)

    class Stateful:
        def __reduce__(self):
            return rebuild, arguments, (arguments[0], 0, (1024,), (1,))

    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"ema": {"x": Stateful()}}))
    with pytest.raises(UserError, match="for something else"):
        read_checkpoint(tmp_path / "x.pkl", 1 << 20)


def test_a_module_that_holds_itself_is_refused(tmp_path):
    network = modules_of({"map_layer0.weight": torch.zeros(2)})
    network._modules["again"] = network
    with pytest.raises((UserError, RecursionError)):
        read_checkpoint(write_pickle(tmp_path / "x.pkl", network), 1 << 20)
    # Pickle cannot write it; by hand: a module of which the state holds the memo of itself.
    head = b"\x80\x02ctorch.nn.modules.container\nModuleList\n)\x81q\x00"
    body = head + b"}X\x08\x00\x00\x00_modules}X\x01\x00\x00\x00ah\x00ssb."
    (tmp_path / "y.pkl").write_bytes(b"\x80\x02}X\x03\x00\x00\x00ema" + body[2:-1] + b"s.")
    with pytest.raises(UserError, match="there twice"):
        read_checkpoint(tmp_path / "y.pkl", 1 << 20)


def test_long_source_texts_are_not_parsed(tmp_path):
    path = write_pickle(tmp_path / "x.pkl", Persistent("EDMPrecond", "a\n" * 4_000_000))
    with pytest.raises(UserError, match="source text of at most"):
        read_checkpoint(path, 1 << 30)
    many = {f"beside{i}": Persistent("Loss", f"x = {i}\n") for i in range(40)}
    with pytest.raises(UserError, match="source texts"):
        read_checkpoint(write_pickle(tmp_path / "y.pkl", modules_of(tensors_of("EDM")), **many), 1 << 30)


@pytest.mark.parametrize("value", ["abc", -1.0, 0.0, float("nan"), 10**400, True])
def test_a_sigma_data_that_is_none(tmp_path, value):
    path = write_pickle(tmp_path / "x.pkl", modules_of(tensors_of("EDM"), sigma_data=value))
    with pytest.raises(UserError, match="sigma_data"):
        import_checkpoint(path, tmp_path / "run", ImportConfig())


def test_what_a_file_says_is_kept(tmp_path):
    """Dropout, sigma_data and the law of the levels; another preconditioning, seen by the loss alone, is refused."""
    loss = Persistent("EDMLoss")
    loss.P_mean, loss.P_std = -0.4, 1.0
    path = write_pickle(tmp_path / "x.pkl", modules_of(tensors_of("EDM"), sigma_data=0.7), loss_fn=loss)
    denoiser, description = imported(path, tmp_path / "run")
    assert (description.network.dropout, denoiser.sigma_data) == (0.13, 0.7)
    assert (description.objective.mean, description.objective.std) == (-0.4, 1.0)
    path = write_pickle(tmp_path / "y.pkl", tensors_of("EDM"), loss_fn=Persistent("AmbientVPLoss"))
    with pytest.raises(UserError, match="AmbientVPLoss"):
        import_checkpoint(path, tmp_path / "other", ImportConfig())


def test_four_channels_without_gates_are_not_taken_for_mri(tmp_path):
    shapes = song_shapes(**{**SMALL, "inputs": 4, "outputs": 4, "resolution": 16})
    with pytest.raises(UserError, match="without gates"):
        import_checkpoint(write_pickle(tmp_path / "x.pkl", random_tensors(shapes)), tmp_path / "run", ImportConfig())


def test_other_sizes_keep_the_levels_that_attend(tmp_path):
    denoiser, description = imported(write_pickle(tmp_path / "x.pkl", tensors_of("EDM")), tmp_path / "run", size=(32, 24))
    assert description.network.attention == (16,)  # of 16 rows it was 8
    assert denoiser(torch.zeros(1, 3, 32, 24), torch.ones(1)).shape == (1, 3, 32, 24)


def test_a_training_is_not_begun_where_an_import_lies(tmp_path):
    import_checkpoint(write_pickle(tmp_path / "x.pkl", tensors_of("EDM")), tmp_path / "n/pretrain", ImportConfig())
    for verb in ("pretrain", "distill"):
        (tmp_path / "n/distill").mkdir(exist_ok=True)
        (tmp_path / "n/distill/import.json").write_text("{}")
        done = run("rsdmri-natural", verb, "--name", "n", "--runs", tmp_path)
        assert done.returncode == 1
        assert "was imported" in done.stderr


def test_data_that_do_not_fit_an_imported_network(tmp_path):
    import_checkpoint(write_pickle(tmp_path / "x.pkl", tensors_of("Ambient")), tmp_path / "teacher", ImportConfig())
    common = ["--runs", tmp_path, "--run", tmp_path / "teacher", "--sample.n", 2]
    wrong_size = run("rsdmri-natural", "sample", *common, "--data.size", 32)
    assert wrong_size.returncode == 1
    assert "16 x 16" in wrong_size.stderr
    no_masks = run("rsdmri-natural", "sample", *common, "--data.size", 16, "--data.corruption", "blur")
    assert no_masks.returncode == 1
    assert "shown masks" in no_masks.stderr


def test_arrays_of_pickles_are_plain_numbers():
    """The reader of CIFAR-10 is the same machine."""
    import numpy as np

    from rsdmri.arrays import unpickled

    array = np.arange(6, dtype=">i4").reshape(2, 3)
    for given in (array, np.asfortranarray(array), array.astype(np.float64), array.astype(bool)):
        for protocol in (2, 4):
            assert (unpickled(pickle.dumps({b"data": given}, protocol))[b"data"] == given).all()
    for hostile in (HOSTILE["object dtype"], HOSTILE["object array"]):
        with pytest.raises(UserError):
            unpickled(hostile)
    for refused_kind in (np.array([None, "x"]), np.zeros(2, "i4,f4"), np.array(["a"])):
        with pytest.raises(UserError, match="plain numbers"):
            unpickled(pickle.dumps({b"data": refused_kind}))
