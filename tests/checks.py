"""Mathematical properties of linear operators, in double precision."""

import torch


def random_like(shape, dtype, generator):
    return torch.randn(shape, dtype=dtype, generator=generator)


def inner(a, b):
    assert a.shape == b.shape
    return (a.conj() * b).flatten(1).sum(1)


def adjoint(operator, x, y):
    """<A x, y> = <x, A^H y>; shapes first, because a flattened product would not see them."""
    assert operator.forward(x).shape == y.shape
    assert operator.adjoint(y).shape == x.shape
    left, right = inner(operator.forward(x), y), inner(x, operator.adjoint(y))
    assert torch.allclose(left, right, rtol=1e-12, atol=1e-12), (left - right).abs().max()


def linear(operator, x, z):
    factor = 2.0 - 3.0j if x.is_complex() else -1.7
    left = operator.forward(factor * x + z)
    assert torch.allclose(left, factor * operator.forward(x) + operator.forward(z), rtol=1e-12, atol=1e-12)


def gram(operator, x):
    assert torch.allclose(operator.gram(x), operator.adjoint(operator.forward(x)), rtol=1e-12, atol=1e-12)


def vjp_is_adjoint(operator, x, y):
    x = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(operator.forward(x), x, y)
    assert torch.allclose(gradient, operator.adjoint(y), rtol=1e-12, atol=1e-12)


def batch_is_loop(operator, x):
    whole = operator.forward(x)
    for i in range(len(x)):
        assert torch.allclose(operator[i].forward(x[i : i + 1]), whole[i : i + 1], rtol=1e-12, atol=1e-12)


def norm_at_most(operator, x, limit):
    """By power iteration, which finds the direction that is stretched most."""
    for _ in range(100):
        x = operator.gram(x / x.flatten(1).norm(dim=1)[:, None, None, None])
    assert (x.flatten(1).norm(dim=1).sqrt() <= limit * (1 + 1e-12)).all()
