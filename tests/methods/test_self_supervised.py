"""Self-supervised losses against other libraries and closed forms; each cure is seen to forbid the collapse."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from companion.data import digits
from companion.device import generator, randn
from companion.methods import energy
from companion.methods import self_supervised as ss

F64 = torch.float64


def normals(*shape, seed=0):
    return randn(*shape, generator=generator(seed), dtype=F64)


def whitened(x):
    """Mean 0, covariance exactly I, by numpy's eigendecomposition."""
    x = x.numpy() - x.numpy().mean(0)
    values, vectors = np.linalg.eigh(np.cov(x.T))
    return torch.from_numpy(x @ vectors / np.sqrt(values))


# ---------------------------------------------------------------------- InfoNCE


@pytest.mark.verifies("eq-info-nce")
def test_info_nce_is_the_nll_of_minus_the_cosine_over_tau_with_the_batch_as_all_answers():
    """Two libraries: torch's cross-entropy of its own cosines, and the companion's NLL loss on a table of energies."""
    a, b, tau = normals(12, 5), normals(12, 5, seed=1), 0.3
    cosines = torch.stack([torch.cosine_similarity(row[None], b) for row in a])
    rows = torch.arange(12)
    ours = ss.info_nce(a, b, temperature=tau)
    torch.testing.assert_close(ours, torch.nn.functional.cross_entropy(cosines / tau, rows, reduction="none"))
    answers = energy.Answers.of_labels(-cosines / tau, rows)
    torch.testing.assert_close(ours, energy.nll_loss(answers, beta=1.0))


@pytest.mark.verifies("eq-info-nce")
def test_info_nce_knows_its_two_ends():
    """Closed forms: log N for a collapsed embedding, log(1 + (N − 1) e^{−1/τ}) for N perpendicular pairs."""
    n, tau = 8, 0.5
    collapsed = torch.ones(n, 3, dtype=F64)
    torch.testing.assert_close(
        ss.info_nce(collapsed, collapsed, temperature=tau), torch.full((n,), math.log(n)).double()
    )
    perfect = 3 * torch.eye(n, dtype=F64)
    best = math.log(1 + (n - 1) * math.exp(-1 / tau))
    torch.testing.assert_close(ss.info_nce(perfect, 7 * perfect, temperature=tau), torch.full((n,), best).double())


def test_the_bound_on_information_holds():
    """A number that the loss does not know: log N − loss stays below the mutual information of two normals."""
    n, correlation = 2_000, 0.9
    u = normals(n, 1)
    v = correlation * u + math.sqrt(1 - correlation**2) * normals(n, 1, seed=1)
    information = -0.5 * math.log(1 - correlation**2)
    angle = [torch.cat([torch.cos(x), torch.sin(x)], dim=1) for x in (u / 2, v / 2)]
    gained = math.log(n) - ss.info_nce(*angle, temperature=0.05).mean()
    assert 0.3 * information < gained < information


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_a_temperature_is_positive(temperature):
    with pytest.raises(ValueError, match=r"info_nce: received temperature.*rule"):
        ss.info_nce(normals(4, 2), normals(4, 2), temperature=temperature)


# ---------------------------------------------------------------------- VICReg and Barlow Twins


@pytest.mark.verifies("eq-vicreg")
def test_the_terms_of_vicreg_are_those_of_numpy():
    """numpy's variance and covariance, and a loop over the pairs."""
    a, b = 0.6 * normals(20, 4), 0.5 * normals(20, 4, seed=1)
    terms = ss.vicreg_terms(a, b, eps=0.0)
    spread = [np.maximum(0, 1 - x.numpy().std(axis=0, ddof=1)).mean() for x in (a, b)]
    off = [(np.cov(x.numpy().T) ** 2 * (1 - np.eye(4))).sum() / 4 for x in (a, b)]
    pairs = [float(((x - y) ** 2).sum()) for x, y in zip(a, b, strict=True)]
    assert terms.variance.item() == pytest.approx(sum(spread))
    assert terms.covariance.item() == pytest.approx(sum(off))
    assert terms.invariance.item() == pytest.approx(np.mean(pairs))
    loss = ss.vicreg(a, b, invariance=2.0, variance=3.0, covariance=5.0)
    assert loss.item() == pytest.approx(2 * np.mean(pairs) + 3 * sum(spread) + 5 * sum(off), rel=1e-3)


@pytest.mark.verifies("eq-vicreg")
def test_vicreg_is_zero_for_equal_whitened_views_and_not_for_a_collapse():
    """Whitening by numpy: spread at least one and no correlation cost nothing. A single point costs two hinges."""
    x = 1.1 * whitened(normals(50, 6))
    assert ss.vicreg(x, x).item() == pytest.approx(0, abs=1e-10)
    point = torch.ones(50, 6, dtype=F64)
    assert ss.vicreg_terms(point, point).variance.item() == pytest.approx(2 * (1 - 0.01))  # 0.01 is the root of eps
    assert ss.vicreg(point, point, variance=0.0).item() == 0


def test_barlow_twins_is_zero_for_equal_whitened_views_and_the_width_for_a_collapse():
    x = whitened(normals(400, 5))
    assert ss.barlow_twins(x, -2 * x + 3).item() == pytest.approx(20, rel=1e-3)  # five correlations of −1: Σ (1 + 1)²
    assert ss.barlow_twins(x, 2 * x + 3).item() == pytest.approx(0, abs=1e-6)
    point = torch.ones(50, 5, dtype=F64)
    assert ss.barlow_twins(point, point).item() == pytest.approx(5)


def test_barlow_twins_reads_the_correlations_of_numpy():
    a, b = normals(30, 3), normals(30, 3, seed=1)
    table = np.corrcoef(a.numpy().T, b.numpy().T)[:3, 3:]
    expected = ((1 - np.diag(table)) ** 2).sum() + 0.1 * (table**2 * (1 - np.eye(3))).sum()
    assert ss.barlow_twins(a, b, off_diagonal=0.1, eps=0.0).item() == pytest.approx(expected)


@pytest.mark.parametrize("loss", [ss.info_nce, ss.vicreg, ss.barlow_twins])
@pytest.mark.parametrize("shapes", [((4, 2), (5, 2)), ((4, 2), (4, 3)), ((1, 2), (1, 2))])
def test_pairs_fit(loss, shapes):
    with pytest.raises(ValueError, match=r"received embeddings .*; rule: pairs row by row"):
        loss(*(torch.zeros(shape) for shape in shapes))


def test_each_cure_forbids_the_collapse_that_the_bare_distance_allows():
    """Gradient descent on a free table of embeddings: the distance alone shrinks it to a point, the losses do not."""
    losses = {
        "distance": lambda a, b: (a - b).square().sum(1).mean() + 0.02 * (a.square() + b.square()).sum(1).mean(),
        "contrastive": lambda a, b: ss.info_nce(a, b).mean(),
        "variance": lambda a, b: ss.vicreg(a, b),
        "correlation": lambda a, b: ss.barlow_twins(a, b),
    }
    spread = {}
    for name, loss in losses.items():
        a, b = (0.1 * normals(16, 3, seed=s) for s in (0, 1))
        a.requires_grad_(), b.requires_grad_()
        optimizer = torch.optim.Adam([a, b], lr=0.02)
        for _ in range(300):
            optimizer.zero_grad()
            loss(a, b).backward()
            optimizer.step()
        spread[name] = a.detach().std(0).min().item()
    assert spread["distance"] < 0.01
    assert min(spread[name] for name in ("contrastive", "variance", "correlation")) > 0.05


# ---------------------------------------------------------------------- masks


def test_masks_hide_whole_patches_the_same_number_in_each_image():
    images = normals(40, 1, 8, 8).clamp(-0.9, 0.9)
    masked = ss.mask_patches(images, patch=2, share=0.25, generator=generator(0))
    patches = masked.hidden.reshape(40, 4, 2, 4, 2)
    assert (patches.all(4).all(2) == patches.any(4).any(2)).all()
    assert (masked.hidden.flatten(1).sum(1) == 16).all()
    assert (masked.images[masked.hidden] == -1).all()
    assert torch.equal(masked.images[~masked.hidden], images[~masked.hidden])


def test_every_patch_is_hidden_equally_often():
    """Counts of 20,000 masks: each patch within four standard errors of its share (false alarm 1e-3 over 16)."""
    n = 20_000
    hidden = ss.mask_patches(torch.zeros(n, 1, 8, 8), share=0.5, generator=generator(1)).hidden[:, 0, ::2, ::2]
    assert (hidden.double().mean(0) - 0.5).abs().max() < 4 * 0.5 / math.sqrt(n)


def test_the_prediction_loss_is_blind_to_what_is_visible():
    images, guess = normals(3, 1, 4, 4), normals(3, 1, 4, 4, seed=1)
    hidden = torch.zeros(3, 1, 4, 4, dtype=torch.bool)
    hidden[:, :, :2] = True
    expected = (guess - images)[:, 0, :2].square().mean((1, 2))
    torch.testing.assert_close(ss.masked_prediction_loss(guess, images, hidden), expected)
    with pytest.raises(ValueError, match="nothing hidden"):
        ss.masked_prediction_loss(guess, images, torch.zeros_like(hidden))
    with pytest.raises(ValueError, match="the same shape"):
        ss.masked_prediction_loss(guess[:, :, :2], images, hidden)


@pytest.mark.parametrize(
    "options", [{"patch": 3}, {"patch": 0}, {"share": 0.0}, {"share": 1.0}, {"share": math.nan}, {"patch": 8}]
)
def test_unusable_masks_are_refused(options):
    with pytest.raises(ValueError, match=r"mask_patches: received .*; rule"):
        ss.mask_patches(torch.zeros(2, 1, 8, 8), **options, generator=generator(0))


# ---------------------------------------------------------------------- views


def test_a_view_is_the_image_moved_by_a_pixel_or_not_at_all():
    """numpy's roll of a padded image; all nine moves occur."""
    images = normals(200, 2, 5, 6)
    views = ss.augment(images, noise=0.0, generator=generator(0))
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-1)
    found = set()
    for image, view in zip(padded, views.numpy(), strict=True):
        moves = [(i, j) for i in range(3) for j in range(3) if np.array_equal(image[:, i : i + 5, j : j + 6], view)]
        found.update(moves)
        assert len(moves) == 1
    assert len(found) == 9


def test_the_noise_of_a_view_has_its_standard_deviation():
    """Four standard errors of the spread of 64,000 pixels (false alarm 6e-5)."""
    images = torch.zeros(1000, 1, 8, 8)
    noise = ss.augment(images, shift=0, noise=0.3, generator=generator(0))
    assert abs(noise.std() - 0.3) < 4 * 0.3 / math.sqrt(2 * noise.numel())
    with pytest.raises(ValueError, match=r"augment: received .*; rule"):
        ss.augment(images, noise=-1.0, generator=generator(0))
    with pytest.raises(ValueError, match=r"augment: received .*; rule"):
        ss.augment(images, shift=-1, generator=generator(0))


# ---------------------------------------------------------------------- the probe


def test_the_probe_is_sklearns_logistic_regression():
    """scikit-learn with the same penalty, on standardized pixels of the digits."""
    train, test = digits("train"), digits("test")
    rows = ss.few_labels(train.labels, each=5, generator=generator(0))
    assert train.labels[rows].bincount().tolist() == [5] * 10
    x, y = train.images[rows].flatten(1), test.images.flatten(1)
    ours = ss.linear_probe(x, train.labels[rows], y, test.labels, decay=0.5)
    scale = x.std(0, correction=0)
    x, y = ((part - x.mean(0)) / torch.where(scale > 0, scale, torch.inf) for part in (x, y))
    theirs = LogisticRegression(C=2.0, max_iter=5000, tol=1e-8).fit(x.double().numpy(), train.labels[rows].numpy())
    assert ours == pytest.approx(theirs.score(y.double().numpy(), test.labels.numpy()), abs=2 / 597)


def test_the_probe_does_not_care_about_offset_and_scale_of_features():
    x, y = normals(60, 4), normals(30, 4, seed=1)
    labels, test_labels = (x[:, 0] > 0).long(), (y[:, 0] > 0).long()
    plain = ss.linear_probe(x, labels, y, test_labels)
    moved = ss.linear_probe(3 * x + 5, labels, 3 * y + 5, test_labels)
    assert plain == moved > 0.9
    constant = torch.ones(60, 2)
    assert ss.linear_probe(constant, labels, constant[:30], test_labels) < 0.7


def test_the_probe_and_the_few_labels_refuse_what_they_cannot_use():
    x, labels = normals(10, 2), torch.arange(10) % 2
    with pytest.raises(ValueError, match=r"linear_probe: .*decay"):
        ss.linear_probe(x, labels, x, labels, decay=0.0)
    with pytest.raises(ValueError, match="not finite"):
        ss.linear_probe(x / 0, labels, x, labels)
    with pytest.raises(ValueError, match="negative label"):
        ss.linear_probe(x, labels - 1, x, labels)
    with pytest.raises(ValueError, match="few_labels: received each = 6"):
        ss.few_labels(labels, each=6, generator=generator(0))


def test_the_effective_rank_counts_directions():
    x = whitened(normals(100, 6))
    assert ss.effective_rank(x) == pytest.approx(6)
    assert ss.effective_rank(x[:, :1] @ torch.ones(1, 4, dtype=F64) + 2) == pytest.approx(1, abs=1e-6)
    assert ss.effective_rank(torch.full((5, 3), 2.0)) == 0
