"""Rational-quadratic splines: interpolation, slopes, the way back, and what is refused."""

import pytest
import torch

from companion.device import generator, randn
from companion.numerics.splines import Knots, knots, knots_from, rational_quadratic, rational_quadratic_inverse

F64 = torch.float64
EPS = torch.finfo(F64).eps
BINS, BOUND = 6, 3.0
PHI = 1.5 * randn(400, 3 * BINS - 1, generator=generator(0), dtype=F64)
KNOTS = knots_from(PHI, bins=BINS, bound=BOUND)
X = 2.5 * randn(400, generator=generator(1), dtype=F64)


def f64(*values):
    return torch.tensor(values, dtype=F64)


def at_knots(k):
    return rational_quadratic(KNOTS.x[:, k], KNOTS)


@pytest.mark.verifies("eq-rational-quadratic")
@pytest.mark.parametrize("k", range(BINS + 1))
def test_the_spline_passes_through_its_knots_with_the_given_slopes(k):
    """The table of knots itself."""
    y, log_slope = at_knots(k)
    torch.testing.assert_close(y, KNOTS.y[:, k], atol=1e-13, rtol=0)
    torch.testing.assert_close(log_slope.exp(), KNOTS.slope[:, k], atol=0, rtol=1e-10)


@pytest.mark.verifies("eq-rational-quadratic")
def test_the_slope_is_the_derivative_and_is_positive_everywhere():
    """Automatic differentiation of the value, at points inside and outside the knots."""
    x = X.clone().requires_grad_()
    y, log_slope = rational_quadratic(x, KNOTS)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert (slope > 0).all()
    torch.testing.assert_close(log_slope, slope.log(), atol=1e-11, rtol=1e-11)
    assert (X.abs() > BOUND).sum() > 50


@pytest.mark.verifies("eq-rational-quadratic")
def test_one_bin_by_hand():
    """Equal slopes in a bin that rises as fast make a line; slope 2 to 1/2 from (0, 0) to (1, 1) is 2x/(1 + x)."""
    line = knots(f64(0, 1, 2), f64(0, 3, 6), f64(3, 3, 3))
    x = torch.linspace(0.05, 1.95, 20, dtype=F64)
    one = Knots(line.table.expand(20, 3, 3))
    torch.testing.assert_close(rational_quadratic(x, one)[0], 3 * x)
    bow = knots(f64(0, 1, 2), f64(0, 1, 1.5), f64(2, 0.5, 0.5))
    x = torch.linspace(0, 1, 20, dtype=F64)
    torch.testing.assert_close(rational_quadratic(x, Knots(bow.table.expand(20, 3, 3)))[0], 2 * x / (1 + x))


def test_the_inverse_is_exact_to_rounding():
    """The way there and back, in units of the rounding error that the slope lets through."""
    y, log_slope = rational_quadratic(X, KNOTS)
    x, back = rational_quadratic_inverse(y, KNOTS)
    assert ((x - X).abs() <= 100 * EPS * BOUND * (1 + (-log_slope).exp())).all()
    torch.testing.assert_close(back, -log_slope, atol=1e-10, rtol=0)
    there = rational_quadratic(x, KNOTS)[0]
    assert (there - y).abs().max() < 1e-13


def test_extreme_numbers_stay_bijections():
    """Free numbers of size 1e6 in float32: slopes at the knots within (1e-3, 1e3), values finite and increasing."""
    wild = knots_from(1e6 * randn(200, 23, generator=generator(2)), bins=8)
    assert (wild.x.diff(dim=-1) > 0).all()
    assert (wild.y.diff(dim=-1) > 0).all()
    assert wild.slope.min() >= 0.999e-3
    assert wild.slope.max() <= 1001
    grid = torch.linspace(-6, 6, 500)[:, None].expand(500, 200)
    y, log_slope = rational_quadratic(grid, Knots(wild.table.expand(500, 200, 3, 9)))
    assert y.isfinite().all()
    assert log_slope.isfinite().all()
    assert y.diff(dim=0).min() > -1e-5  # rounding in float32


def test_zeros_are_the_identity_and_outside_the_box_everything_is():
    """x itself."""
    zero = knots_from(torch.zeros(400, 3 * BINS - 1, dtype=F64), bins=BINS, bound=BOUND)
    for where, bent in ((X, zero), (X.sign() * (X.abs() + BOUND), KNOTS)):
        y, log_slope = rational_quadratic(where, bent)
        torch.testing.assert_close(y, where, atol=1e-13, rtol=0)
        assert log_slope.abs().max() < 1e-10
        torch.testing.assert_close(rational_quadratic_inverse(where, bent)[0], where, atol=1e-12, rtol=0)


def test_left_and_right_of_the_knots_the_spline_goes_on_straight():
    """Slopes 2 and 1/2 at the ends, by hand."""
    bow = knots(f64(0, 1, 2), f64(0, 1, 1.5), f64(2, 1, 0.5)).table.expand(2, 3, 3)
    y, log_slope = rational_quadratic(f64(-1, 4), Knots(bow))
    torch.testing.assert_close(y, f64(-2, 2.5))
    torch.testing.assert_close(log_slope.exp(), f64(2, 0.5))
    torch.testing.assert_close(rational_quadratic_inverse(y, Knots(bow))[0], f64(-1, 4))


def test_gradients_are_right_for_every_free_number():
    """Central differences (gradcheck), both ways."""
    phi, x = PHI[:20].clone().requires_grad_(), X[:20].clone().requires_grad_()

    def there(phi, x):
        return rational_quadratic(x, knots_from(phi, bins=BINS, bound=BOUND))

    def back(phi, x):
        return rational_quadratic_inverse(x, knots_from(phi, bins=BINS, bound=BOUND))

    assert torch.autograd.gradcheck(there, (phi, x), atol=1e-5)
    assert torch.autograd.gradcheck(back, (phi, x), atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: knots_from(PHI, bins=1), r"spline: received bins = 1; rule: a whole number, 2 or more"),
        (lambda: knots_from(PHI, bins=True), "bins = True"),
        (lambda: knots_from(PHI, bins=7), r"received 17 numbers for 7 bins; rule: 3 bins − 1 = 20"),
        (lambda: knots_from(PHI, bins=BINS, bound=0.0), r"bound = 0.0; rule: positive and finite"),
        (lambda: knots_from(PHI, bins=BINS, least=1.0), r"least = 1.0; rule: between 0 and 1"),
        (lambda: knots(f64(0, 1), f64(0, 1), f64(1, 1)), "received 1 bins"),
        (lambda: knots(f64(0, 2, 1), f64(0, 1, 2), f64(1, 1, 1)), "received x that do not increase"),
        (lambda: knots(f64(0, 1, 2), f64(0, 1, 1), f64(1, 1, 1)), "received y that do not increase"),
        (lambda: knots(f64(0, 1, 2), f64(0, 1, 2), f64(1, -1, 1)), "received a slope of -1"),
    ],
)
def test_errors_name_the_rule(call, message):
    with pytest.raises(ValueError, match=message):
        call()
