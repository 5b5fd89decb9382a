"""The Inception network of FID: its features, its resize, and files of weights, good and bad. The published weights are not needed."""

import os
import pickle
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from rsdmri.errors import UserError
from rsdmri.files import sha256
from rsdmri.metrics.inception import Inception, resize_tf1
from rsdmri.metrics.weights import ENVIRONMENT, WEIGHTS, find_weights, load_inception

# Features 220, 476, ... of `IMAGES` with `random_weights`, in double precision. Those of torch-fidelity 0.4.0 differ by less than 1e-5.
FIRST, EVERY = 220, 256
GOLDEN = [
    [1.79248461, 2.15416986, 5.58418625, 1.14487669, 4.09655794, 0.70981458, 2.72287257, 3.49865291],
    [2.51093840, 3.64621240, 8.12722853, 2.46455088, 7.31930675, 0.82007043, 3.07874096, 5.32121663],
]

# The convolutions of the published file, by block.
STEM = "Conv2d_1a_3x3 Conv2d_2a_3x3 Conv2d_2b_3x3 Conv2d_3b_1x1 Conv2d_4a_3x3"
BRANCHES = {
    "5b 5c 5d": "1x1 5x5_1 5x5_2 3x3dbl_1 3x3dbl_2 3x3dbl_3 _pool",
    "6a": "3x3 3x3dbl_1 3x3dbl_2 3x3dbl_3",
    "6b 6c 6d 6e": "1x1 7x7_1 7x7_2 7x7_3 7x7dbl_1 7x7dbl_2 7x7dbl_3 7x7dbl_4 7x7dbl_5 _pool",
    "7a": "3x3_1 3x3_2 7x7x3_1 7x7x3_2 7x7x3_3 7x7x3_4",
    "7b 7c": "1x1 3x3_1 3x3_2a 3x3_2b 3x3dbl_1 3x3dbl_2 3x3dbl_3a 3x3dbl_3b _pool",
}
OF_CONVOLUTION = ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
REAL_WEIGHTS = os.environ.get(ENVIRONMENT)


def shapes():
    """Names and shapes of the tensors, without the counters that a file need not hold."""
    with torch.device("meta"):
        tensors = Inception().state_dict()
    return {name: tensor.shape for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}


def random_weights():
    """Weights that keep the size of what passes through them, drawn in the order of their names."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in sorted(shapes().items()):
        if len(shape) > 1:  # He et al. 2015
            gain = (2 / shape[1:].numel()) ** 0.5
            tensors[name] = gain * torch.randn(shape, dtype=torch.float32, generator=generator)
        elif name.endswith(("bn.weight", "running_var")):
            tensors[name] = 0.5 + torch.rand(shape, dtype=torch.float32, generator=generator)
        else:
            tensors[name] = 0.1 * torch.randn(shape, dtype=torch.float32, generator=generator)
    return tensors


def small_weights():
    """Tensors of the right shapes whose file is small: one number, repeated without being copied."""
    return {name: torch.ones(1, dtype=torch.float32).expand(shape) for name, shape in shapes().items()}


IMAGES = torch.randint(0, 256, (2, 3, 40, 56), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
IMAGES[1] //= 4  # darker, so that the two have different features


@pytest.fixture(autouse=True)
def nothing_named(monkeypatch):
    monkeypatch.delenv(ENVIRONMENT, raising=False)


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    """Random weights in the older format of torch.save, that of the published file."""
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(random_weights(), path, _use_new_zipfile_serialization=False)
    return path


@pytest.fixture(scope="module")
def network(weights_file):
    return load_inception(weights_file, expected=None)[0]


@pytest.fixture(scope="module")
def features(network):
    return network(IMAGES)


def refused(path, **options):
    """What the error of a file says."""
    with pytest.raises(UserError) as error:
        load_inception(path, **{"expected": None, **options})
    message = str(error.value)
    assert message.startswith(str(path))
    return message


def saved(tmp_path, content, **options):
    path = tmp_path / "weights.pth"
    torch.save(content, path, **options)
    return path


# The network.


def test_tensors_are_those_of_the_published_file():
    blocks = [(number, branches) for numbers, branches in BRANCHES.items() for number in numbers.split()]
    layers = [*STEM.split(), *(f"Mixed_{n}.branch{branch}" for n, branches in blocks for branch in branches.split())]
    found = shapes()
    assert len(layers) == 94 and len(found) == 472  # 566 with the counters
    assert set(found) == {f"{layer}.{last}" for layer in layers for last in OF_CONVOLUTION} | {"fc.weight", "fc.bias"}
    assert sum(shape.numel() for name, shape in found.items() if "running" not in name) == 23_850_960
    assert found["fc.weight"] == (1008, 2048)
    assert found["Mixed_6c.branch7x7_2.conv.weight"] == (160, 160, 1, 7)
    assert found["Mixed_6c.branch7x7dbl_2.conv.weight"] == (160, 160, 7, 1)


def test_features_are_the_golden_ones(features):
    assert features.shape == (2, 2048) and features.dtype == torch.float32
    assert np.allclose(features[:, FIRST::EVERY], GOLDEN, rtol=1e-4, atol=0)


def test_features_are_those_of_torch_fidelity(network, features, weights_file):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3", exc_type=ImportError)
        theirs = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(weights_file))
    assert torch.allclose(theirs(IMAGES)[0], features, rtol=1e-6, atol=1e-6)
    resize = module.interpolate_bilinear_2d_like_tensorflow1x
    for shape in [(40, 56), (384, 320), (600, 1001), (1, 7)]:
        images = torch.randint(0, 256, (2, 3, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
        assert torch.equal(resize_tf1(images, (299, 299)), resize(images.float(), (299, 299), align_corners=False))


def test_a_batch_is_its_images_one_at_a_time(network, features):
    alone = torch.cat([network(image[None]) for image in IMAGES])
    assert torch.allclose(alone, features, rtol=1e-4, atol=1e-5)
    assert network(IMAGES[:0]).shape == (0, 2048)


def test_the_network_infers_only(network, features):
    assert not features.requires_grad and not any(parameter.requires_grad for parameter in network.parameters())
    torch.nn.Sequential(network).train()
    assert not any(module.training for module in network.modules())


@pytest.mark.parametrize(
    ("images", "found"),
    [
        (torch.zeros(2, 3, 8, 8, dtype=torch.float32), r"not float32 \(2, 3, 8, 8\)"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), r"not uint8 \(2, 1, 8, 8\)"),
        (torch.zeros(2, 8, 8, 3, dtype=torch.uint8), r"not uint8 \(2, 8, 8, 3\)"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), r"not uint8 \(3, 8, 8\)"),
    ],
)
def test_other_images_are_refused(network, images, found):
    with pytest.raises(UserError, match=f"{found}. Scale them"):
        network(images)


# The resize.


def resized_by_loops(image, rows, columns):
    """TensorFlow's rule, pixel by pixel in double precision."""
    height, width = image.shape
    result = np.empty((rows, columns))
    for i in range(rows):
        for j in range(columns):
            y, x = i * height / rows, j * width / columns
            top, left = int(np.floor(y)), int(np.floor(x))
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            corners = image[[[top, top], [bottom, bottom]], [[left, right], [left, right]]]
            result[i, j] = np.array([1 - (y - top), y - top]) @ corners @ np.array([1 - (x - left), x - left])
    return result


@pytest.mark.parametrize("size", [(7, 5), (23, 31), (4, 40), (30, 3), (1, 1), (13, 17)])
def test_resize_agrees_with_loops(size):
    images = np.random.default_rng(0).uniform(0, 255, (2, 3, 13, 17))
    expected = np.array([[resized_by_loops(channel, *size) for channel in image] for image in images])
    assert np.allclose(resize_tf1(torch.from_numpy(images), size), expected, rtol=0, atol=1e-10)
    assert np.allclose(resize_tf1(torch.from_numpy(images).float(), size), expected, rtol=0, atol=2e-3)


def test_resize_by_hand():
    image = torch.tensor([[0, 10], [20, 40]], dtype=torch.uint8)
    # Columns at 0, 1/2, 1 and 3/2, beyond the last pixel; rows at 0, 2/3 and 4/3.
    expected = torch.tensor([[0, 5, 10, 10], [40 / 3, 65 / 3, 30, 30], [20, 30, 40, 40]])
    assert torch.allclose(resize_tf1(image, (3, 4)), expected.float())
    # Every 3/2-th pixel, between neighbours: the pixel at 0 does not see the one at 1.
    row = torch.tensor([[6.0, 100.0, 200.0]])
    assert resize_tf1(row, (1, 2)).tolist() == [[6, 150]]
    assert torch.equal(resize_tf1(row, (1, 3)), row)
    assert resize_tf1(image, (2, 2)).dtype == torch.float32 and resize_tf1(row, (1, 2)).dtype == torch.float64


@pytest.mark.parametrize(
    ("images", "size"),
    [
        (torch.zeros(5), (2, 2)),
        (torch.zeros(1, 3, 0, 4), (2, 2)),
        (torch.zeros(1, 3, 4, 4), (0, 2)),
        (torch.zeros(4, 4, dtype=torch.complex64), (2, 2)),
    ],
)
def test_resize_refuses_what_has_no_pixels(images, size):
    with pytest.raises(UserError, match="are needed for resizing"):
        resize_tf1(images, size)


# Files.


def test_the_hash_is_given_and_checked(weights_file):
    digest = load_inception(weights_file, expected=sha256(weights_file)[:8].upper())[1]
    assert digest == sha256(weights_file)
    message = refused(weights_file, expected="6726825d")
    assert digest[:16] in message and "begins with 6726825d expected" in message and all(name in message for name in WEIGHTS)


def test_another_hash_than_the_published_is_refused_by_default(tmp_path):
    path = saved(tmp_path, small_weights())
    with pytest.raises(UserError, match="6726825d expected"):
        load_inception(path)


@pytest.mark.skipif(not REAL_WEIGHTS, reason=f"{ENVIRONMENT} is not set: it names the published weights")
def test_published_weights_load(monkeypatch):
    monkeypatch.setenv(ENVIRONMENT, REAL_WEIGHTS)
    network, digest = load_inception(None)
    assert digest.startswith("6726825d") and network(IMAGES).isfinite().all()


def test_weights_arrive_in_single_precision(network, tmp_path):
    expected = random_weights()
    found = network.state_dict()
    assert all(torch.equal(found[name], tensor) and found[name].dtype == torch.float32 for name, tensor in expected.items())
    save_file(expected, tmp_path / "weights.safetensors")
    again = load_inception(tmp_path / "weights.safetensors", expected=None)[0].state_dict()
    assert found.keys() == again.keys() and all(torch.equal(found[name], again[name]) for name in found)
    half = {name: tensor.half() for name, tensor in small_weights().items()}
    assert load_inception(saved(tmp_path, half), expected=None)[0].fc.weight.dtype == torch.float32


def test_counters_of_batches_are_optional(network, tmp_path):
    counters = {name: torch.tensor(7) for name in network.state_dict() if name.endswith("num_batches_tracked")}
    assert len(counters) == 94
    load_inception(saved(tmp_path, small_weights() | counters), expected=None)
    counters.popitem()
    load_inception(saved(tmp_path, small_weights() | counters), expected=None)
    name = "Mixed_5b.bn.num_batches_tracked"
    assert f"1 unexpected: {name}" in refused(saved(tmp_path, small_weights() | {name: torch.tensor(7)}))


def test_every_tensor_that_does_not_fit_is_named(tmp_path):
    weights = small_weights()
    del weights["fc.bias"], weights["Mixed_7c.branch_pool.conv.weight"]
    weights["AuxLogits.fc.weight"] = torch.zeros(2)
    weights["fc.weight"] = torch.zeros(1).expand(1000, 2048)
    weights["Mixed_5b.branch1x1.bn.bias"] = torch.zeros(1, dtype=torch.long).expand(64)
    message = refused(saved(tmp_path, weights))
    assert "2 missing: Mixed_7c.branch_pool.conv.weight, fc.bias;" in message
    assert "1 unexpected: AuxLogits.fc.weight;" in message
    assert "1 of another shape: fc.weight (1000, 2048), not (1008, 2048);" in message
    assert "1 not dense numbers: Mixed_5b.branch1x1.bn.bias (int64)." in message
    assert all(name in message for name in WEIGHTS)


def test_of_many_tensors_ten_are_named(tmp_path):
    message = refused(saved(tmp_path, {"fc.bias": torch.zeros(1008)}))
    assert "471 missing: " in message and " and 461 more" in message and message.count("Conv2d_") == 10


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path, value):
    weights = small_weights() | {"Mixed_6a.branch3x3.bn.bias": torch.full((384,), value)}
    assert "NaN or infinity in Mixed_6a.branch3x3.bn.bias" in refused(saved(tmp_path, weights))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"state_dict": {"fc.bias": torch.zeros(1008)}}, "a dict with state_dict found"),
        ([torch.zeros(2)], "a list found"),
        (torch.zeros(2), "a Tensor found"),
        ({3: torch.zeros(2)}, "a dict with 3 found"),
        (torch.nn.Linear(2, 2), "it asks for torch.nn.modules.linear.Linear"),
    ],
)
def test_files_that_hold_something_else(tmp_path, content, found):
    assert found in refused(saved(tmp_path, content))


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("kept", [0, 0.01, 0.5, 0.999])
def test_torn_files(tmp_path, kind, kept):
    path = tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.pth")
    tensors = {name: torch.zeros(100) for name in list(shapes())[:20]}
    if kind == "safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    message = refused(path)
    # A name that is cut in the middle is another name.
    assert "not a complete" in message or "which tensors do not need" in message


def test_text_is_refused(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_text("<html>404: Not Found</html>")
    assert "not a complete file of torch.save" in refused(path)


class Bomb:
    """An object whose unpickling makes a folder."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle 2", "pickle 4"])
def test_nothing_in_a_file_is_executed(tmp_path, kind):
    path, canary = tmp_path / "weights.pth", tmp_path / "canary"
    content = {"fc.bias": Bomb(canary)}
    if kind.startswith("pickle"):
        path.write_bytes(pickle.dumps(content, int(kind[-1])))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    message = refused(path)  # torch does not know the fourth protocol
    assert ("not a complete file" if kind == "pickle 4" else "mkdir, which tensors do not need; nothing was run") in message
    assert "6726825d expected" in refused(path, expected="6726825d")
    assert not canary.exists()
    if kind.startswith("pickle"):
        pickle.loads(path.read_bytes())
        assert canary.exists()  # it would have worked


# Where the file is.


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_environment_names_a_file_or_its_folder(tmp_path, monkeypatch, name):
    (tmp_path / name).touch()
    for place in (tmp_path, tmp_path / name):
        monkeypatch.setenv(ENVIRONMENT, str(place))
        assert find_weights(None) == tmp_path / name
    other = tmp_path / "other.pth"
    other.touch()
    assert find_weights(other) == other


def test_weights_are_loaded_from_the_environment(tmp_path, monkeypatch):
    path = saved(tmp_path, small_weights())
    monkeypatch.setenv(ENVIRONMENT, str(path))
    assert load_inception(None, expected=None)[1] == sha256(path)


@pytest.mark.parametrize("value", [None, ""])
def test_nothing_given(monkeypatch, value):
    if value is not None:
        monkeypatch.setenv(ENVIRONMENT, value)
    with pytest.raises(UserError, match=f"--evaluate.weights FILE, or let {ENVIRONMENT}") as error:
        load_inception(None)
    assert all(name in str(error.value) and place in str(error.value) for name, place in WEIGHTS.items())


def test_places_without_the_file(tmp_path, monkeypatch):
    assert "no such file" in refused(tmp_path / "nothing.pth")
    (tmp_path / next(iter(WEIGHTS))).touch()
    assert "a folder; the file" in refused(tmp_path)  # only the environment may name a folder
    empty = tmp_path / "empty"
    empty.mkdir()
    for place, problem in ((empty, "a folder without pt_inception"), (empty / "nothing", "no such file")):
        monkeypatch.setenv(ENVIRONMENT, str(place))
        with pytest.raises(UserError, match=problem) as error:
            load_inception(None)
        assert str(error.value).startswith(f"{place} ({ENVIRONMENT})")
