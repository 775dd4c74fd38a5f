r"""Self-supervision: two views a, b of one image have low energy together, and nobody says what the image shows.

    InfoNCE   ℓ_i = −log( e^{cos(a_i, b_i)/τ} / Σ_j e^{cos(a_i, b_j)/τ} )                                 (eq-info-nce)
    VICReg    ℓ = λ mean_i ‖a_i − b_i‖² + μ [v(a) + v(b)] + ν [c(a) + c(b)]                               (eq-vicreg)
              v(a) = mean_k max(0, 1 − √(Var a_·k + ε)),   c(a) = 1/d Σ_{k≠l} Cov(a)²_kl
    Barlow    ℓ = Σ_k (1 − C_kk)² + w Σ_{k≠l} C²_kl,   C_kl = correlation of a_·k and b_·l over the batch
    masked    ℓ = mean over the hidden pixels of (x̂ − x)²,   x̂ computed from the others

`a` and `b` are embeddings of two views, row i of both from image i. If f(x) is the same for all x, each pair of views
has the energy 0: the landscape is flat. Each loss has a cure of its own. InfoNCE is the negative log-likelihood of the
energy −cos(a, b)/τ at β = 1, with the batch as the set of all answers: it pulls the wrong ones up. VICReg and Barlow
Twins forbid embeddings that do not vary or that repeat one another. Masked prediction is a regression, whose energy
½‖x̂ − x‖² cannot be flat in x. `linear_probe` measures what an embedding is good for.

Sources: van den Oord et al. 2018, eq. (4) (InfoNCE); Chen et al. 2020 (cosine and temperature, views of images); Bardes
et al. 2022, eqs. (1) to (6) (VICReg); Zbontar et al. 2021, eqs. (1) and (2) (Barlow Twins); He et al. 2022 (masking).
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from companion.device import rand, randn_like
from companion.numerics._checks import is_whole, not_finite

Embeddings = Float[Tensor, "batch dim"]
Others = Float[Tensor, "others width"]  # the shape of a is checked with a message
Pictures = Float[Tensor, "batch channels height width"]
BACKGROUND = -1.0  # of images in [−1, 1]

# --- Contrastive ------------------------------------------------------------------------------------------------------


def cosine_energies(a: Embeddings, b: Others) -> Float[Tensor, "batch others"]:
    """E_ij = −cos(a_i, b_j), from −1 (same direction) to 1; a row of zeros has the energy 0 with everything."""
    _check_width("cosine_energies", a, b)
    return -functional.normalize(a, dim=1) @ functional.normalize(b, dim=1).T


def info_nce(a: Embeddings, b: Others, *, temperature: float = 0.2) -> Float[Tensor, " batch"]:
    """−log of the probability that b_i is picked for a_i from all b of the batch (eq-info-nce).

    Between 0 and, for embeddings that are all the same, log(batch). It is not symmetric: train on
    `info_nce(a, b) + info_nce(b, a)`.

    Args:
        a: Embeddings of one view of each image.
        b: Embeddings of another view, row by row of the same images.
        temperature: τ = 1/β; small ones look at the nearest wrong answers only.
    """
    _check_pairs("info_nce", a, b)
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"info_nce: received temperature = {temperature}; rule: positive and finite")
    scores = -cosine_energies(a, b) / temperature
    return scores.logsumexp(dim=1) - scores.diagonal()


# --- Not contrastive --------------------------------------------------------------------------------------------------


class VICRegTerms(NamedTuple):
    """The three terms of VICReg before they are weighted, each of shape ().

    Attributes:
        invariance: mean ‖a_i − b_i‖².
        variance: v(a) + v(b), 0 where every coordinate has a standard deviation of at least one.
        covariance: c(a) + c(b), 0 where no two coordinates of an embedding are correlated.
    """

    invariance: Tensor
    variance: Tensor
    covariance: Tensor


def vicreg_terms(a: Embeddings, b: Others, *, eps: float = 1e-4) -> VICRegTerms:
    """Invariance, variance and covariance of a batch of pairs (eq-vicreg); `eps` keeps the root differentiable."""
    _check_pairs("vicreg", a, b)

    def variance(x: Tensor) -> Tensor:
        return torch.relu(1 - (x.var(dim=0) + eps).sqrt()).mean()

    return VICRegTerms(
        (a - b).square().sum(dim=1).mean(), variance(a) + variance(b), _off_diagonal(a) + _off_diagonal(b)
    )


def vicreg(
    a: Embeddings, b: Others, *, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0
) -> Float[Tensor, ""]:
    """The weighted sum of the three terms (eq-vicreg), with the weights λ, μ, ν of Bardes et al.

    Args:
        a: Embeddings of one view of each image.
        b: Embeddings of another view of the same images.
        invariance: λ, for two views that should agree.
        variance: μ, against the collapse on one point; 0 lets it happen.
        covariance: ν, against coordinates that repeat one another.
    """
    terms = vicreg_terms(a, b)
    return invariance * terms.invariance + variance * terms.variance + covariance * terms.covariance


def barlow_twins(a: Embeddings, b: Others, *, off_diagonal: float = 0.005, eps: float = 1e-5) -> Float[Tensor, ""]:
    """How far the correlations between the coordinates of a and those of b are from the identity.

    Args:
        a: Embeddings of one view of each image.
        b: Embeddings of another view of the same images.
        off_diagonal: w, the weight of different coordinates.
        eps: is added to the variances: a coordinate that does not vary correlates with nothing.
    """
    _check_pairs("barlow_twins", a, b)
    u, v = ((x - x.mean(dim=0)) / (x.var(dim=0, correction=0) + eps).sqrt() for x in (a, b))
    correlation = u.T @ v / len(a)
    on, all_squares = correlation.diagonal(), correlation.square().sum()
    return (1 - on).square().sum() + off_diagonal * (all_squares - on.square().sum())


def _off_diagonal(x: Tensor) -> Tensor:
    centered = x - x.mean(dim=0)
    covariance = centered.T @ centered / (len(x) - 1)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / x.shape[1]


# --- Masked prediction ------------------------------------------------------------------------------------------------


class Masked(NamedTuple):
    """Images with hidden patches.

    Attributes:
        images: the images, background where something is hidden.
        hidden: True at hidden pixels, (batch, 1, height, width).
    """

    images: Tensor
    hidden: Tensor


def mask_patches(images: Pictures, *, patch: int = 2, share: float = 0.5, generator: torch.Generator) -> Masked:
    """Hides a share of the square patches of each image, a random set for each, the same number for all.

    Args:
        images: Pixels in [−1, 1].
        patch: side of a patch in pixels; it divides height and width.
        share: part of the patches to hide, rounded to a whole number of them; at least one is hidden and one is not.
        generator: draws the sets.
    """
    height, width = images.shape[2:]
    if not is_whole(patch, least=1) or height % patch or width % patch:
        raise ValueError(f"mask_patches: received patch = {patch} for {height} × {width}; rule: it divides both")
    rows, columns = height // patch, width // patch
    count = round(share * rows * columns) if math.isfinite(share) else -1
    if not 1 <= count < rows * columns:
        raise ValueError(
            f"mask_patches: received share = {share} of {rows * columns} patches; "
            "rule: at least one patch is hidden and at least one is not"
        )
    order = rand(len(images), rows * columns, generator=generator).argsort(dim=1).argsort(dim=1)
    coarse = (order < count).reshape(len(images), 1, rows, columns)
    hidden = coarse.repeat_interleave(patch, dim=2).repeat_interleave(patch, dim=3).to(images.device)
    return Masked(images.masked_fill(hidden, BACKGROUND), hidden)


def masked_prediction_loss(
    predicted: Float[Tensor, "n ..."], images: Pictures, hidden: Bool[Tensor, "batch 1 height width"]
) -> Float[Tensor, " batch"]:
    """Mean squared error of each image over its hidden pixels; what is visible counts for nothing."""
    if predicted.shape != images.shape:
        received = f"{tuple(predicted.shape)} for images {tuple(images.shape)}"
        raise ValueError(f"masked_prediction_loss: received predictions {received}; rule: the same shape")
    error = ((predicted - images).square() * hidden).flatten(1).sum(dim=1)
    count = hidden.flatten(1).sum(dim=1) * images.shape[1]
    if bool((count == 0).any()):
        raise ValueError("masked_prediction_loss: received an image with nothing hidden; rule: at least one pixel is")
    return error / count


# --- Views, and what an embedding is good for -------------------------------------------------------------------------


def augment(images: Pictures, *, shift: int = 1, noise: float = 0.3, generator: torch.Generator) -> Pictures:
    """Another view of each image: moved by up to `shift` pixels each way, then blurred by Gaussian noise.

    Args:
        images: Pixels in [−1, 1]; what moves in from outside is background, −1.
        shift: largest move, in pixels; each image draws its own.
        noise: standard deviation of the noise.
        generator: draws both.
    """
    if not is_whole(shift, least=0) or not (noise >= 0 and math.isfinite(noise)):
        raise ValueError(f"augment: received shift = {shift}, noise = {noise}; rule: a whole number and a number ≥ 0")
    n, _, height, width = images.shape
    padded = functional.pad(images, (shift,) * 4, value=BACKGROUND)
    moves = torch.randint(2 * shift + 1, (2, n, 1), generator=generator)
    rows, columns = (
        (move + torch.arange(side)).to(images.device) for move, side in zip(moves, (height, width), strict=True)
    )
    index = torch.arange(n, device=images.device)[:, None, None]
    moved = padded[index, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return moved + noise * randn_like(moved, generator=generator)


def few_labels(labels: Int[Tensor, " n"], *, each: int, generator: torch.Generator) -> Int[Tensor, " m"]:
    """Row numbers of `each` random examples of every label, sorted by label."""
    chosen = []
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0].cpu()
        if not is_whole(each, least=1) or each > len(rows):
            raise ValueError(f"few_labels: received each = {each}, label {int(label)} has {len(rows)} examples")
        chosen.append(rows[torch.randperm(len(rows), generator=generator)[:each]])
    return torch.cat(chosen).to(labels.device)


def linear_probe(
    features: Float[Tensor, "n dim"],
    labels: Int[Tensor, " n"],
    test_features: Float[Tensor, "m dim"],
    test_labels: Int[Tensor, " m"],
    *,
    decay: float = 1.0,
) -> float:
    """The accuracy on test features of a linear classifier trained on a few others.

    Multinomial logistic regression, to convergence: Σ_i cross-entropy_i + decay/2 ‖W‖² is minimized over W and the
    offsets, after each feature has been brought to mean 0 and variance 1 on the training rows.

    Args:
        features: What the classifier is trained on.
        labels: Their labels, 0, 1, ….
        test_features: What it is judged on.
        test_labels: Theirs.
        decay: weight of the penalty; it makes the minimum unique and must be positive.

    Returns:
        The share of right labels, in [0, 1].
    """
    if not_finite(features) or not_finite(test_features) or not (decay > 0 and math.isfinite(decay)):
        raise ValueError(f"linear_probe: received decay = {decay} or features that are not finite; rule: decay > 0")
    if int(min(labels.min(), test_labels.min())) < 0:
        raise ValueError("linear_probe: received a negative label; rule: labels are 0, 1, …")
    x, y = (part.detach().double() for part in (features, test_features))
    mean, spread = x.mean(dim=0), x.std(dim=0, correction=0)
    spread = torch.where(spread > 1e-9, spread, torch.inf)  # a constant feature says nothing
    x, y = (x - mean) / spread, (y - mean) / spread
    count = int(max(labels.max(), test_labels.max())) + 1
    weights = x.new_zeros(x.shape[1] + 1, count, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=300, tolerance_grad=1e-4, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        entropy = functional.cross_entropy(x @ weights[:-1] + weights[-1], labels, reduction="sum")
        value = entropy + decay / 2 * weights[:-1].square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    guess = (y @ weights[:-1] + weights[-1]).argmax(dim=1)
    return (guess == test_labels).double().mean().item()


def effective_rank(features: Float[Tensor, "n dim"]) -> float:
    """How many directions an embedding uses: e^H of the shares of variance along its principal axes.

    Between 1 (a line) and dim; 0 for features that do not vary.
    """
    centered = (features - features.mean(dim=0)).detach().double()
    variances = torch.linalg.svdvals(centered).square()
    if variances.sum() <= 1e-18 * max(1.0, features.detach().double().square().sum().item()):
        return 0.0
    shares = variances / variances.sum()
    return torch.special.entr(shares).sum().exp().item()


def _check_width(operation: str, a: Tensor, b: Tensor) -> None:
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"{operation}: received {tuple(a.shape)} and {tuple(b.shape)}; rule: embeddings of one length")


def _check_pairs(operation: str, a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape or len(a) < 2:
        raise ValueError(
            f"{operation}: received embeddings {tuple(a.shape)} and {tuple(b.shape)}; "
            "rule: pairs row by row, at least two of them"
        )
