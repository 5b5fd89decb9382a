import checks
import pytest
import torch
from cases import NORMS, OPERATORS, mri

from rsdmri.mri.operators import MultiCoilMRI
from rsdmri.tensors import Batch


@pytest.fixture(params=OPERATORS)
def named(request, generator):
    make, shape, is_complex = OPERATORS[request.param]
    operator = make(generator)
    dtype = torch.complex128 if is_complex else torch.float64
    x = checks.random_like(shape, dtype, generator)
    y = operator.restrict(checks.random_like(operator.forward(x).shape, dtype, generator))
    return request.param, (operator, x, y, generator)


@pytest.fixture
def case(named):
    return named[1]


def test_adjoint(case):
    operator, x, y, generator = case
    checks.adjoint(operator, x, y)
    checks.adjoint(operator, x, checks.random_like(y.shape, y.dtype, generator))  # not only measured samples


def test_linear(case):
    operator, x, _, generator = case
    checks.linear(operator, x, checks.random_like(x.shape, x.dtype, generator))


def test_gram(case):
    operator, x, _, _ = case
    checks.gram(operator, x)


def test_vjp(case):
    operator, x, y, _ = case
    checks.vjp_is_adjoint(operator, x, y)


def test_batch(case):
    operator, x, _, _ = case
    checks.batch_is_loop(operator, x)


def test_norm(named):
    name, (operator, x, _, _) = named
    checks.norm_at_most(operator, x, NORMS.get(name, 1.0))


def test_nothing_is_learned_outside_the_support(case):
    operator, x, _, _ = case
    outside = x * (1 - operator.support())
    assert operator.forward(outside).abs().max() < 1e-14


def test_restrict_is_a_projection(case):
    operator, x, y, _ = case
    assert torch.equal(operator.restrict(y), y)
    assert torch.equal(operator.restrict(operator.forward(x)), operator.forward(x))


def test_mri_is_the_equation_written_out(generator):
    """M F S x with F as a matrix: exp(-2 pi i (u - N//2)(n - N//2) / N) / sqrt(N)."""
    operator = mri(generator, n=2, coils=3, height=5, width=8)
    x = checks.random_like((2, 1, 5, 8), torch.complex128, generator)

    def dft(n):
        index = torch.arange(n) - n // 2
        return torch.exp(-2j * torch.pi * index[:, None] * index / n) / n**0.5

    expected = torch.einsum("uh,bkhw,vw->bkuv", dft(5), operator.maps * x, dft(8)) * operator.mask
    assert torch.allclose(operator.forward(x), expected, atol=1e-13)


def test_with_mask_is_a_new_record(generator):
    operator = mri(generator)
    before = operator.mask.clone()
    thinned = operator.with_mask(torch.zeros_like(operator.mask))
    assert isinstance(thinned, MultiCoilMRI)
    assert torch.equal(operator.mask, before)
    assert not thinned.mask.any()


def test_records_are_indexed_joined_and_moved_as_a_whole(generator):
    operator = mri(generator)
    assert len(operator) == 3
    again = Batch.cat([operator[:1], operator[1:]])
    assert torch.equal(again.maps, operator.maps)
    assert torch.equal(again.mask, operator.mask)
    assert len(operator[torch.tensor([0, 2])]) == 2
    assert operator.to("cpu").maps.device.type == "cpu"


def test_equals_sigpy(generator):
    import sigpy.mri.linop

    operator = mri(generator, n=1, coils=3, height=6, width=8)
    x = checks.random_like((1, 1, 6, 8), torch.complex128, generator)
    sense = sigpy.mri.linop.Sense(operator.maps[0].numpy(), weights=operator.mask[0, 0].expand(6, 8).double().numpy())
    assert torch.allclose(operator.forward(x)[0], torch.from_numpy(sense * x[0, 0].numpy()), atol=1e-12)
