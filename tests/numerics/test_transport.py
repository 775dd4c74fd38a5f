"""Transport: brute force over all permutations, optimality conditions, closed forms, sampling as a distribution."""

import inspect
import itertools
import math

import pytest
import torch

from companion.data import eight_gaussians, two_moons
from companion.device import generator
from companion.numerics.transport import (
    PairingStream,
    crossing_pairs,
    exact_plan,
    optimal_pairing,
    sample_plan,
    sinkhorn_plan,
    sliced_wasserstein,
    wasserstein,
)


def points(n, dim=2, seed=0, dtype=torch.float64):
    return torch.randn(n, dim, generator=generator(seed), dtype=torch.float64).to(dtype)


def cost_of(x0, x1, pairing, p=2):
    return (x0 - x1[pairing]).norm(dim=1).pow(p).sum()


def brute_force(x0, x1, p=2):
    """The least cost over all n! permutations."""
    return min(cost_of(x0, x1, list(order), p) for order in itertools.permutations(range(len(x0))))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6])
def test_the_pairing_is_the_best_of_all_permutations(n):
    x0, x1 = points(n, 3, seed=n), points(n, 3, seed=100 + n)
    torch.testing.assert_close(cost_of(x0, x1, optimal_pairing(x0, x1)), brute_force(x0, x1))


@pytest.mark.parametrize(("n", "dim"), [(5, 2), (100, 2), (300, 2), (100, 20)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_pairing_is_a_permutation_that_no_exchange_and_no_cycle_improves(n, dim, dtype):
    """Optimal means that the matrix of savings by moving a partner has no negative cycle (Floyd–Warshall)."""
    x0, x1 = points(n, dim, dtype=dtype), points(n, dim, seed=1, dtype=dtype)
    pairing = optimal_pairing(x0, x1)
    assert torch.equal(pairing.sort().values, torch.arange(n))
    cost = torch.cdist(x0.double(), x1.double()).square()[:, pairing]
    saving = cost - cost.diagonal()[:, None]
    for k in range(n):
        saving = torch.minimum(saving, saving[:, k : k + 1] + saving[k : k + 1])
    assert saving.diagonal().min() > -1e-4
    assert crossing_pairs(x0, x1[pairing]) == 0


def test_in_one_dimension_the_pairing_sorts():
    x0, x1 = points(200, 1), points(200, 1, seed=1)
    pairing = optimal_pairing(x0, x1)
    assert torch.equal(x1[pairing][x0[:, 0].argsort()], x1.sort(dim=0).values)


def test_a_shift_far_away_does_not_spoil_the_pairing():
    x0, x1 = points(50, dtype=torch.float32), points(50, seed=1, dtype=torch.float32)
    far = optimal_pairing(x0.double() + 1e6, x1.double() - 1e6)
    assert torch.equal(far, optimal_pairing(x0, x1))


def test_points_that_coincide_still_get_a_permutation():
    x0, x1 = torch.zeros(100, 2), torch.ones(100, 2)
    assert torch.equal(optimal_pairing(x0, x1).sort().values, torch.arange(100))


def test_the_exact_plan_has_its_marginals_and_beats_every_other_plan():
    """Duality: potentials with u_i + v_j ≤ c_ij bound the cost from below; here the bound is tight (linear program)."""
    from scipy.optimize import linprog

    x0, x1 = points(4), points(6, seed=1)
    a, b = torch.tensor([0.1, 0.2, 0.3, 0.4]).double(), torch.full((6,), 1 / 6).double()
    plan = exact_plan(x0, x1, a, b)
    torch.testing.assert_close(plan.sum(1), a)
    torch.testing.assert_close(plan.sum(0), b)
    cost = torch.cdist(x0, x1).square()
    rows, columns = torch.eye(4).repeat_interleave(6, 1), torch.eye(6).repeat(1, 4)
    sums = torch.cat([rows, columns]).T
    dual = linprog(-torch.cat([a, b]).numpy(), A_ub=sums.numpy(), b_ub=cost.flatten().numpy(), bounds=(None, None))
    assert (plan * cost).sum().item() == pytest.approx(-dual.fun)


def test_weights_need_not_be_normalized_but_must_agree():
    x0, x1 = points(3), points(3, seed=1)
    torch.testing.assert_close(
        exact_plan(x0, x1, 2 * torch.ones(3).double(), 2 * torch.ones(3).double()), exact_plan(x0, x1)
    )
    with pytest.raises(ValueError, match=r"sums 3 and 6; rule: the same mass"):
        exact_plan(x0, x1, torch.ones(3).double(), 2 * torch.ones(3).double())


@pytest.mark.parametrize("epsilon", [0.05, 1.0])
def test_the_sinkhorn_plan_has_its_marginals_and_its_factorized_form(epsilon):
    """A plan is entropic-optimal if and only if log P + c/ε is a sum f_i + g_j: its double differences vanish."""
    x0, x1 = points(8), points(5, seed=1)
    plan = sinkhorn_plan(x0, x1, epsilon=epsilon, tolerance=1e-10)
    torch.testing.assert_close(plan.sum(1), torch.full((8,), 1 / 8).double(), rtol=0, atol=1e-8)
    torch.testing.assert_close(plan.sum(0), torch.full((5,), 1 / 5).double(), rtol=0, atol=1e-8)
    potential = plan.log() + torch.cdist(x0, x1).square() / epsilon
    doubles = potential - potential[:1] - potential[:, :1] + potential[:1, :1]
    torch.testing.assert_close(doubles, torch.zeros_like(doubles), rtol=0, atol=1e-6)


def test_little_entropy_gives_the_exact_plan_and_much_the_independent_one():
    x0 = 3 * points(6)
    x1 = x0.flip(0) + 0.1 * points(6, seed=1)
    torch.testing.assert_close(sinkhorn_plan(x0, x1, epsilon=0.05), exact_plan(x0, x1), rtol=0, atol=1e-5)
    independent = torch.full((6, 6), 1 / 36).double()
    torch.testing.assert_close(sinkhorn_plan(x0, x1, epsilon=1e6), independent, rtol=0, atol=1e-5)


def test_costs_that_underflow_the_plain_iteration_are_no_trouble():
    """exp(−c/ε) is 0 in float64 for every pair here (c/ε > 10,000)."""
    x0, x1 = points(5), points(5, seed=1) + 100
    plan = sinkhorn_plan(x0, x1, epsilon=1.0)
    assert torch.isfinite(plan).all()
    torch.testing.assert_close(plan.sum(), torch.tensor(1.0).double())


def test_iterations_that_do_not_converge_are_reported():
    with pytest.raises(
        ValueError, match=r"epsilon=0.0001, for which the marginals still miss.*after 10 iterations.*Raise"
    ):
        sinkhorn_plan(points(20), points(20, seed=1), epsilon=1e-4, max_iterations=10)


def test_pairs_are_drawn_with_the_probabilities_of_the_plan():
    """Chi-squared over 5 cells of positive mass: a statistic above 40 comes by chance once in 20 million draws."""
    plan = torch.tensor([[0.1, 0.0, 0.2], [0.25, 0.4, 0.05]])
    i, j = sample_plan(plan, 50_000, generator=generator(0))
    counts = torch.bincount(3 * i + j, minlength=6).double()
    expected = 50_000 * plan.flatten().double()
    assert counts[1] == 0
    kept = expected > 0
    assert ((counts - expected)[kept].square() / expected[kept]).sum() < 40


@pytest.mark.parametrize("p", [1, 2, 3])
def test_the_wasserstein_distance_is_that_of_the_best_permutation(p):
    x0, x1 = points(5), points(5, seed=1)
    torch.testing.assert_close(wasserstein(x0, x1, p=p), (brute_force(x0, x1, p) / 5).pow(1 / p))


def test_repeating_every_point_changes_no_distance():
    """The same measures with 4 against 4 and with 8 against 4 points: two different solvers."""
    x0, x1 = points(4), points(4, seed=1)
    torch.testing.assert_close(wasserstein(x0.repeat(2, 1), x1), wasserstein(x0, x1))


def test_a_shift_costs_its_length():
    x, shift = points(100), torch.tensor([3.0, -4.0]).double()
    torch.testing.assert_close(wasserstein(x, x + shift), torch.tensor(5.0).double())
    torch.testing.assert_close(wasserstein(x, x), torch.tensor(0.0).double())


def test_the_distance_between_normal_samples_approaches_the_closed_form():
    """W₂² = |Δmean|² + Σ(Δσ)² for diagonal covariances; the sampling error of 2,000 points stays below 0.1 of 2.3."""
    x0, x1 = points(2000), points(2000, seed=1) * torch.tensor([2.0, 0.5]).double() + torch.tensor([2.0, 0.0]).double()
    assert wasserstein(x0, x1).item() == pytest.approx(math.sqrt(4 + 1 + 0.25), abs=0.1)


def test_the_sliced_distance_of_a_shift_is_known():
    """Each direction sees |⟨θ, shift⟩|, and E⟨θ, shift⟩² = |shift|²/dim; over 4,000 directions its error is 0.8%."""
    x, shift = points(50, 3), torch.tensor([1.0, 2.0, 2.0]).double()
    distance = sliced_wasserstein(x, x + shift, projections=4000, generator=generator(0))
    assert distance.item() == pytest.approx(3 / math.sqrt(3), rel=0.04)


def test_in_one_dimension_the_sliced_distance_is_the_distance():
    x0, x1 = points(30, 1), points(20, 1, seed=1)
    for p in (1, 2):
        sliced = sliced_wasserstein(x0, x1, projections=3, p=p, generator=generator(0))
        torch.testing.assert_close(sliced, wasserstein(x0, x1, p=p))


def test_the_sliced_distance_between_normal_laws_approaches_its_closed_form():
    """For N(0, I) and N(0, s² I) each direction gives |1 − s|; the sampling error of 20,000 points is below 0.02."""
    distance = sliced_wasserstein(points(20_000), 3 * points(20_000, seed=1), projections=20, generator=generator(0))
    assert distance.item() == pytest.approx(2, abs=0.08)


def test_the_sliced_distance_can_be_descended():
    x = points(40).requires_grad_()
    target = points(40, seed=1) + 3
    before = sliced_wasserstein(x, target, projections=50, generator=generator(0))
    before.backward()
    after = sliced_wasserstein(x.detach() - 5 * x.grad, target, projections=50, generator=generator(0))
    assert after < before


def test_crossing_pairs_are_counted_by_their_definition():
    x0, x1 = points(30), points(30, seed=1)
    pairs = itertools.combinations(range(30), 2)
    assert crossing_pairs(x0, x1) == sum(((x0[i] - x0[j]) @ (x1[i] - x1[j]) < 0).item() for i, j in pairs)


def test_a_reflection_crosses_every_pair_and_a_shift_none():
    x = points(20, dtype=torch.float32)
    assert crossing_pairs(x, -x) == 190
    assert crossing_pairs(x, x + 1000) == 0
    assert crossing_pairs(x, torch.zeros_like(x)) == 0


@pytest.mark.parametrize("function", [optimal_pairing, exact_plan, wasserstein, crossing_pairs])
@pytest.mark.parametrize(
    ("x0", "x1", "message"),
    [
        (torch.ones(3, 2), torch.ones(3, 4), r"shapes \(3, 2\) and \(3, 4\)"),
        (torch.ones(3), torch.ones(3), r"shapes \(3,\) and \(3,\)"),
        (torch.ones(0, 2), torch.ones(3, 2), "not empty"),
        (torch.ones(3, 2), torch.full((3, 2), math.nan), "NaN"),
    ],
)
def test_points_that_cannot_be_compared_are_refused(function, x0, x1, message):
    with pytest.raises(ValueError, match=rf"{function.__name__}: received .*{message}"):
        inspect.unwrap(function)(x0, x1)


def test_other_unusable_arguments_are_refused():
    x0, x1 = points(3), points(4, seed=1)
    with pytest.raises(ValueError, match="optimal_pairing: received 3 and 4 points"):
        inspect.unwrap(optimal_pairing)(x0, x1)
    with pytest.raises(ValueError, match="crossing_pairs: received 3 and 4 points"):
        inspect.unwrap(crossing_pairs)(x0, x1)
    with pytest.raises(ValueError, match="received epsilon=0"):
        sinkhorn_plan(x0, x1, epsilon=0.0)
    with pytest.raises(ValueError, match=r"weights a of shape \(2,\)"):
        inspect.unwrap(exact_plan)(x0, x1, torch.ones(2))
    with pytest.raises(ValueError, match=r"received p=0.5"):
        wasserstein(x0, x1, p=0.5)
    with pytest.raises(ValueError, match="projections=0"):
        sliced_wasserstein(x0, x1, projections=0, generator=generator(0))
    for plan in (torch.zeros(2, 2), torch.tensor([[1.0, -1.0]]), torch.tensor([[math.nan]])):
        with pytest.raises(ValueError, match="sample_plan: received a plan"):
            sample_plan(plan, 3, generator=generator(0))


# ---------------------------------------------------------------------- pairing batch after batch


def two_clouds(count, n=128, seed=0):
    source = generator(seed)
    return [
        (eight_gaussians().sample(n, generator=source), two_moons().sample(n, generator=source)) for _ in range(count)
    ]


@pytest.mark.parametrize("dim", [1, 2, 30])
def test_a_stream_of_batches_is_paired_as_well_as_each_alone(dim):
    stream = PairingStream()
    for seed in range(4):
        x0, x1 = points(80, dim, seed=seed), 2 * points(80, dim, seed=50 + seed) + seed
        pairing = stream(x0, x1)
        assert torch.equal(pairing.sort().values, torch.arange(80))
        torch.testing.assert_close(cost_of(x0, x1, pairing), cost_of(x0, x1, optimal_pairing(x0, x1)))


def test_every_batch_of_a_stream_gets_its_optimal_pairing():
    """The optimum of continuous random points is unique, so the permutations themselves must agree."""
    stream = PairingStream()
    for x_0, x_1 in two_clouds(6):
        assert torch.equal(stream(x_0, x_1), optimal_pairing(x_0, x_1))


def test_a_stream_is_exact_where_the_distributions_have_changed():
    """Potentials of other distributions are a bad start, and still no more than a start."""
    stream = PairingStream()
    stream(*two_clouds(1)[0])
    for x_0, x_1 in two_clouds(2, seed=1):
        other = 10 - 3 * x_1.flip(1)
        assert torch.equal(stream(x_0, other), optimal_pairing(x_0, other))


def test_batches_of_a_stream_may_differ_in_size():
    stream = PairingStream()
    stream(*two_clouds(1, n=100)[0])
    for n in (1, 7, 150):
        ((x_0, x_1),) = two_clouds(1, n=n, seed=n)
        assert torch.equal(stream(x_0, x_1), optimal_pairing(x_0, x_1))


def test_batches_of_a_stream_that_do_not_fit_are_refused():
    stream = PairingStream()
    with pytest.raises(ValueError, match="received points of shapes"):
        stream(torch.zeros(0, 2), torch.zeros(0, 2))
    stream(*two_clouds(1)[0])
    with pytest.raises(ValueError, match="NaN or infinity"):
        stream(torch.zeros(3, 2), torch.full((3, 2), torch.nan))
