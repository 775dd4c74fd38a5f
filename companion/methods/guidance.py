r"""Guidance: push samples toward a label, by the gradient of a classifier or by the difference of two fields.

    ∇log p_t(x | y) = ∇log p_t(x) + ∇log p_t(y | x)                                              (eq-guidance-bayes)
    u_t(x) = (α̇_t/α_t) x + b_t ∇log p_t(x)                                                 (eq-velocity-from-score)
    b_t = (α̇_t σ_t² − σ̇_t σ_t α_t)/α_t                                                                    (eq-b-t)
    ũ_t(x) = u_t(x) + w b_t ∇log p_t(y | x)                                                (eq-classifier-guidance)
    ũ_t(x) = (1 − w) u_t(x | ∅) + w u_t(x | y)                                                 (eq-classifier-free)
    ε̃ = ε_u + γ (ε_c − ε_u),  γ = w                                                              (eq-epsilon-form)
    q(x) = p(x)^{1−w} p(x | y)^w / Z ∝ p(x) p(y | x)^w                                                  (eq-tilted)

`t` runs from 0 (noise) to 1 (data) and x_t = α_t x_1 + σ_t ε; `y` is a label, 0 … K − 1, and ∅, 'none given', is the
label K. w = 0 is the unguided field, w = 1 the conditional one, w > 1 extrapolates beyond it. Ho and Salimans call
w − 1 the guidance weight. The guided field at time t has the score of *noised and then tilted* densities,
p_t(x)^{1−w} p_t(x | y)^w; whoever wanted to sample q would need the score of the *tilted and then noised* one. For
w ∉ {0, 1} the two differ at 0 < t < 1 (eq-tilted-gap) but in special cases, such as Gaussians of one covariance. So the
guided field does not sample q, and for what it does sample there is in general no known formula.

The same combination guides any prediction that is affine in the score: velocity, noise, data. A noise model of the
diffusion chapter is guided by the same class; its time 1 is noise, which the class never needs to know.

Sources: Dhariwal and Nichol 2021, section 4 (classifier guidance); Ho and Salimans 2021 (classifier-free guidance);
Lipman et al. 2024, 'Flow matching guide and code', section 4.10; Zheng et al. 2023 (guided flows); Bradley and
Nakkiran 2024 (what guidance does not sample).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional as F

from companion.data.densities import Density, GaussianMixture
from companion.device import rand
from companion.numerics._checks import broken, not_finite
from companion.numerics.paths import GaussianPath, expand_time

Field = Callable[[Tensor, Tensor], Tensor]  # v(t, x), or a noise prediction
ConditionalModel = Callable[[Tensor, Tensor, Tensor], Tensor]  # v(t, x, y)
Classifier = Callable[[Tensor, Tensor], Tensor]  # scores of the labels (batch, K) at the noisy x, before the softmax
LabelLogProb = Callable[[Tensor, Tensor, Tensor], Tensor]  # log p_t(y | x), (batch,)
Labels = Shaped[Tensor, "*batch"]
Weight = float | int | Tensor
Time = Float[Tensor, "*time"]


# --- Training with labels ---------------------------------------------------------------------------------------------


def drop_labels(y: Labels, *, probability: float | int, null: int, generator: torch.Generator) -> Labels:
    """Replaces each label by `null` with the given probability, each example by its own draw.

    One network then learns both fields: told a label the conditional one, told `null` the marginal one.

    Args:
        y: Labels 0 … null − 1, (batch,).
        probability: η, in [0, 1].
        null: The label that means 'none given'; one more than the largest label.
        generator: Source of the draws.

    Returns:
        The labels to train with, (batch,).

    Raises:
        ValueError: If a label is out of range (or is `null` itself), or η is no probability.
    """
    _check_labels("drop_labels", y, null)
    if not 0 <= probability <= 1:
        raise ValueError(f"drop_labels: received probability={probability}; rule: from 0 (keep all) to 1 (drop all)")
    dropped = rand(*y.shape, generator=generator, device=y.device) < probability
    return y.masked_fill(dropped, null)


def given(model: ConditionalModel, y: Labels) -> Field:
    """The field (t, x) ↦ model(t, x, y): any loss or sampler that knows no labels takes it.

    Args:
        model: Called `model(t, x, y)`.
        y: One label for each row of x, (batch,), or one for all, ().
    """
    _check_integers("given", y)

    def field(t: Tensor, x: Tensor) -> Tensor:
        return model(t, x, _for_rows("given", y, x))

    return field


def noisy_classifier_loss(
    classifier: Classifier,
    path: GaussianPath,
    x_1: Float[Tensor, "batch ..."],
    y: Labels,
    t: Float[Tensor, "batch"],
    eps: Float[Tensor, "batch ..."],
) -> Float[Tensor, "batch"]:
    """−log p(y | x_t) of each example at its own time: what a classifier that is to guide must be trained on.

    Args:
        classifier: Scores of the labels before the softmax, `classifier(t, x)` (batch, K).
        path: The path of the model that will be guided.
        x_1: Data, (batch, ...).
        y: Their labels, 0 … K − 1, (batch,).
        t: Times in [0, 1], (batch,).
        eps: Standard normal noise, (batch, ...).

    Returns:
        The cross-entropy of each example in nats, (batch,).
    """
    _check_integers("noisy_classifier_loss", y)
    scores = classifier(t, path.sample(t, x_1, eps))
    if scores.ndim != 2 or len(scores) != len(x_1) or y.shape != x_1.shape[:1]:
        raise ValueError(
            f"noisy_classifier_loss: received scores {tuple(scores.shape)} and labels {tuple(y.shape)} for "
            f"x_1 {tuple(x_1.shape)}; rule: scores (batch, K), labels (batch,)"
        )
    _check_labels("noisy_classifier_loss", y, scores.shape[1])
    return F.cross_entropy(scores, y.long(), reduction="none")


# --- Classifier-free guidance -----------------------------------------------------------------------------------------


class Guided:
    """ũ(t, x) = (1 − w) model(t, x, ∅) + w model(t, x, y), from one call of the model on twice the rows.

    A velocity model gives the guided velocity, a noise model the guided noise. The call is one, the work is that of
    two: `evaluations` counts the rows that the model has seen. With the number w = 0 or w = 1 only one of the two is
    needed, and only one is computed.

    Args:
        model: Called `model(t, x, y)`, trained with dropped labels.
        y: One label for each row of x, (batch,), or one for all, (); 0 … null − 1.
        w: Guidance weight: 0 unguided, 1 conditional, more extrapolates. A number, or a tensor () or (batch,).
        null: The label that means 'none given'; the model's own `labels` unless given.

    Attributes:
        evaluations: Rows that the model has been evaluated on.
        calls: Times that it has been called.

    Raises:
        ValueError: If a label is out of range, w is not finite, or `null` is not the model's own.
    """

    def __init__(self, model: ConditionalModel, y: Labels, w: Weight, *, null: int | None = None):
        self.model, self.y, self.w = model, y, w
        self.null = _null_label(model, null)
        self.evaluations = self.calls = 0
        _check_labels("Guided", y, self.null)
        _check_weight("Guided", w)

    def __call__(self, t: Time, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """The guided prediction at time `t`, () or (batch,)."""
        y = _for_rows("Guided", self.y, x)
        none = torch.full_like(y, self.null)
        if _is_number(self.w, 0):
            return self._model(t, x, none)
        if _is_number(self.w, 1):
            return self._model(t, x, y)
        twice = torch.cat([t, t]) if t.ndim else t
        free, conditional = self._model(twice, torch.cat([x, x]), torch.cat([none, y])).chunk(2)
        return free + _shaped("Guided", self.w, x) * (conditional - free)

    def _model(self, t: Tensor, x: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        self.evaluations += len(x)
        return _same_shape("Guided", self.model(t, x, y), x)


# --- Classifier guidance ----------------------------------------------------------------------------------------------


def guidance_scale(path: GaussianPath, t: Time) -> Time:
    """b_t = (α̇_t σ_t² − σ̇_t σ_t α_t)/α_t: what a change of the score does to the velocity. CondOT: (1 − t)/t.

    Args:
        path: A path of `companion.numerics.paths`.
        t: Times in (0, 1], any shape.

    Raises:
        ValueError: If α_t = 0 at some t, as at t = 0, where the score does not determine the velocity.
    """
    expand_time("guidance_scale", t.flatten(), t.flatten())
    alpha, sigma = path.alpha(t), path.sigma(t)
    if broken(alpha.abs() > 4 * torch.finfo(alpha.dtype).eps):
        raise ValueError(
            f"guidance_scale: received t from {t.min().item():.6g}; rule: t > 0, since b_t divides by alpha_t, "
            "which is 0 at t=0"
        )
    return (path.d_alpha(t) * sigma**2 - path.d_sigma(t) * sigma * alpha) / alpha


def label_log_prob(classifier: Classifier) -> LabelLogProb:
    """log p_t(y | x) as a function of (t, x, y), from a classifier that scores all labels.

    Args:
        classifier: Scores before the softmax, `classifier(t, x)` (batch, K).
    """

    def log_prob(t: Tensor, x: Tensor, y: Tensor) -> Tensor:
        scores = classifier(t, x)
        _check_labels("label_log_prob", y, scores.shape[-1])
        return scores.log_softmax(dim=-1).gather(1, y.long()[:, None])[:, 0]

    return log_prob


class ClassifierGuided:
    """ũ(t, x) = u(t, x) + w b_t ∇_x log p_t(y | x).

    The classifier must know noise: p_t(y | x) is the probability of the label given the *noisy* x_t.

    b_t grows like 1/t as t → 0 while the gradient shrinks like t: their product has a limit, a float has not. Before
    the time `earliest` the push is therefore computed as if it were `earliest`.

    Args:
        model: u(t, x), a velocity trained on `path` without labels.
        path: Its Gaussian path.
        log_prob_of_label: log p_t(y | x), called with (t, x, y), (batch,), differentiable in x. See `label_log_prob`.
        y: One label for each row of x, (batch,), or one for all, ().
        w: Guidance weight: 0 unguided, 1 conditional. A number, or a tensor () or (batch,).
        earliest: The push at earlier times is computed at this one.

    Attributes:
        evaluations: Rows that the model has been evaluated on.
        gradients: Rows that the classifier has been differentiated on.
    """

    def __init__(
        self,
        model: Field,
        path: GaussianPath,
        log_prob_of_label: LabelLogProb,
        y: Labels,
        w: Weight,
        *,
        earliest: float = 1e-3,
    ):
        self.model, self.path, self.log_prob_of_label = model, path, log_prob_of_label
        self.y, self.w, self.earliest = y, w, earliest
        self.evaluations = self.gradients = 0
        _check_integers("ClassifierGuided", y)
        _check_weight("ClassifierGuided", w)
        if not 0 < earliest <= 1:
            raise ValueError(f"ClassifierGuided: received earliest={earliest}; rule: in (0, 1], since b_t divides by t")

    def __call__(self, t: Time, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """The guided velocity at time `t`, () or (batch,)."""
        self.evaluations += len(x)
        u = _same_shape("ClassifierGuided", self.model(t, x), x)
        if _is_number(self.w, 0):
            return u
        late = t.clamp(min=self.earliest)
        b = _shaped("ClassifierGuided", guidance_scale(self.path, late).to(x), x)
        return u + _shaped("ClassifierGuided", self.w, x) * b * self._gradient(late, x)

    def _gradient(self, t: Tensor, x: Tensor) -> Tensor:
        self.gradients += len(x)
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            log_prob = self.log_prob_of_label(t, point, _for_rows("ClassifierGuided", self.y, x))
            if log_prob.shape != x.shape[:1]:
                raise ValueError(
                    f"ClassifierGuided: received log-probabilities {tuple(log_prob.shape)} for x {tuple(x.shape)}; "
                    f"rule: one for each row, ({len(x)},)"
                )
            return torch.autograd.grad(log_prob.sum(), point)[0]


# --- Where everything is known: mixtures whose components have labels -------------------------------------------------


class LabeledMixture:
    """p(x, y): a Gaussian mixture whose components carry labels, so that p(x), p(x | y) and p(y | x) are all known.

    Args:
        mixture: p(x).
        labels: The label of each component, 0 … K − 1, each used, (k,). None: every component is its own label.

    Attributes:
        labels: K, the number of labels; the label K itself means 'none given'.
        members: The components of each label.
        classes: p(x | y) for each label, mixtures too.
        weights: p(y), (K,).
    """

    def __init__(self, mixture: GaussianMixture, labels: Labels | None = None):
        of_component = torch.arange(len(mixture.weights)) if labels is None else labels
        _check_integers("LabeledMixture", of_component)
        used = of_component.unique()
        if of_component.shape != mixture.weights.shape or not torch.equal(used, torch.arange(len(used)).to(used)):
            raise ValueError(
                f"LabeledMixture: received labels {of_component.tolist()} for {len(mixture.weights)} components; "
                "rule: one for each, and 0 … K − 1 without a gap"
            )
        self.mixture, self.of_component, self.labels = mixture, of_component.to(mixture.means.device), len(used)
        self.members = [(self.of_component == label).nonzero()[:, 0] for label in range(self.labels)]
        self.classes = [
            GaussianMixture(mixture.means[k], mixture.covariances[k], mixture.weights[k]) for k in self.members
        ]
        self.weights = torch.stack([mixture.weights[k].sum() for k in self.members])
        self.dim = mixture.dim

    def sample(self, n: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """`n` points, (n, dim), with their labels, (n,)."""
        x, component = self.mixture.sample_with_component(n, generator=generator)
        return x, self.of_component[component]

    def at_time(self, path: GaussianPath, t: Time) -> "LabeledMixture":
        """The law of (x_t, y) at one time `t`, of shape (): noise does not touch the label."""
        return LabeledMixture(self.mixture.at_time(path, t), self.of_component)


@dataclass(frozen=True)
class _Exact:
    data: LabeledMixture
    path: GaussianPath

    @property
    def labels(self) -> int:
        """K, which as a label means 'none given'."""
        return self.data.labels

    def __call__(self, t: Time, x: Float[Tensor, "batch dim"], y: Labels | None = None) -> Float[Tensor, "batch dim"]:
        """The value at time `t`, () or (batch,), given labels (batch,); K, and no y at all, is 'none given'."""
        if y is None:
            return self._of(self.data.mixture, t, x)
        _check_labels(type(self).__name__, y, self.labels, or_null=True)
        parts = torch.stack([self._of(part, t, x) for part in (*self.data.classes, self.data.mixture)], dim=1)
        return parts.gather(1, y.to(x.device).long()[:, None, None].expand(-1, 1, x.shape[1]))[:, 0]

    def _of(self, law: GaussianMixture, t: Tensor, x: Tensor) -> Tensor:
        raise NotImplementedError


class ExactVelocity(_Exact):
    """u_t(x | y) of a labeled mixture, called as a network is: `model(t, x, y)`.

    Args:
        data: p(x, y).
        path: The path from noise to it.
    """

    def _of(self, law: GaussianMixture, t: Tensor, x: Tensor) -> Tensor:
        return law.marginal_velocity(self.path, t, x)


class ExactScore(_Exact):
    """∇log p_t(x | y) of a labeled mixture, called `score(t, x, y)`.

    Args:
        data: p(x, y).
        path: The path from noise to it.
    """

    def _of(self, law: GaussianMixture, t: Tensor, x: Tensor) -> Tensor:
        return law.marginal_score(self.path, t, x)


@dataclass(frozen=True)
class BayesClassifier:
    """log p_t(y | x) for all labels of a labeled mixture, by Bayes: the best that a noise-aware classifier can learn.

    Args:
        data: p(x, y).
        path: The path from noise to it.
    """

    data: LabeledMixture
    path: GaussianPath

    def __call__(self, t: Time, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch labels"]:
        """log p_t(y | x) at time `t`, () or (batch,)."""
        log_joint = self.data.mixture.marginal_log_joint(self.path, t, x)
        each = [log_joint[:, k.to(x.device)].logsumexp(dim=1) for k in self.data.members]
        return torch.stack(each, dim=1).log_softmax(dim=1)


class TiltedDensity(Density):
    """q(x) = p(x)^{1−w} p(x | y)^w / Z of a labeled mixture on the line or in the plane, with Z by quadrature.

    For w > 1 it is p(x | y) p(y | x)^{w−1} up to a factor: the part of the label's density that is easiest to tell
    from the other labels. Its noised law, the one that a sampler of q would have to follow, is computed on the same
    grid, which reaches eight standard deviations beyond the means.

    Args:
        data: p(x, y), on points of 1 or 2 numbers.
        label: y.
        w: The exponent, at least 0: below, q may have no finite integral.
        points: Nodes of the grid along each axis; None: 4,001 on the line, 401 in the plane.
    """

    def __init__(self, data: LabeledMixture, label: int, w: float | int, *, points: int | None = None):
        _check_weight("TiltedDensity", w)
        if w < 0:
            raise ValueError(f"TiltedDensity: received w={w}; rule: w ≥ 0, since below the integral may be infinite")
        if not 0 <= label < data.labels:
            raise ValueError(f"TiltedDensity: received label {label}; rule: from 0 to {data.labels - 1}")
        if data.dim > 2:
            raise ValueError(
                f"TiltedDensity: received points of {data.dim} numbers; rule: 1 or 2, a grid holds no more"
            )
        self.data, self.label, self.w, self.dim = data, label, w, data.dim
        self.nodes, self.spacing = _grid(data.mixture, points or {1: 4001, 2: 401}[data.dim])
        log_q = self._unnormalized(self.nodes)
        self.log_normalizer = log_q.logsumexp(0) + self.spacing.log().sum()
        self.log_mass = log_q.log_softmax(0)

    def log_prob(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, " batch"]:
        """(1 − w) log p(x) + w log p(x | y) − log Z."""
        self._check("log_prob", x)
        return self._unnormalized(x) - self.log_normalizer.to(x)

    def score(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        """(1 − w) ∇log p(x) + w ∇log p(x | y), in closed form: Z is not needed."""
        self._check("score", x)
        return (1 - self.w) * self.data.mixture.score(x) + self.w * self.data.classes[self.label].score(x)

    def sample(self, n: int, *, generator: torch.Generator) -> Float[Tensor, "n dim"]:
        """`n` points: a node of the grid by its mass, then uniform in its cell."""
        total = self.log_mass.exp().cumsum(0)
        pick = rand(n, generator=generator, dtype=total.dtype, device=total.device) * total[-1]
        nodes = self.nodes[torch.searchsorted(total, pick).clamp(max=len(total) - 1)]
        inside = rand(n, self.dim, generator=generator, dtype=total.dtype, device=total.device) - 0.5
        return nodes + inside * self.spacing

    def posterior_mean(self, path: GaussianPath, t: Time, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        """E[x_1 | x_t = x] for x_1 ~ q, at one time `t`, of shape ()."""
        late = self._late("posterior_mean", path, t, x)
        return self._mean_near(path, t, x, lambda x_1: x_1) if late else self._mean_on_grid(path, t, x)

    def marginal_score(self, path: GaussianPath, t: Time, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        """The score of x_t = α_t x_1 + σ_t ε for x_1 ~ q (tilted, then noised), at one time `t`, of shape ()."""
        if self._late("marginal_score", path, t, x):
            return self._mean_near(path, t, x, self.score) / path.alpha(t).to(x)  # E[∇log q(x_1) | x_t = x]/α_t
        return path.score_from_data(t, x, self._mean_on_grid(path, t, x))

    def marginal_velocity(
        self, path: GaussianPath, t: Time, x: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, "batch dim"]:
        """The velocity that does carry noise to q, at one time `t`, of shape ()."""
        if self._late("marginal_velocity", path, t, x):
            return path.velocity_from_score(t, x, self.marginal_score(path, t, x))
        return path.velocity_from_data(t, x, self._mean_on_grid(path, t, x))

    def _late(self, operation: str, path: GaussianPath, t: Tensor, x: Tensor) -> bool:
        """Whether what x_t says of x_1, up to σ_t/α_t, is too narrow for the grid."""
        self._check(operation, x)
        if t.ndim:
            raise ValueError(f"TiltedDensity.{operation}: received t of shape {tuple(t.shape)}; rule: one time, ()")
        expand_time(f"TiltedDensity.{operation}", t, x)
        return bool(path.sigma(t) < 3 * path.alpha(t) * self.spacing.max())

    def _mean_on_grid(self, path: GaussianPath, t: Tensor, x: Tensor) -> Tensor:
        alpha, sigma = path.alpha(t).to(x), path.sigma(t).to(x)
        heavy = self.log_mass > self.log_mass.max() - 46  # e^−46 = 1e-20 of the heaviest node
        nodes, log_mass = self.nodes[heavy].to(x), self.log_mass[heavy].to(x)
        means = []
        for rows in x.split(max(1, 4_000_000 // len(nodes))):  # |x|² cancels
            fit = (alpha * rows @ nodes.T - 0.5 * alpha**2 * nodes.square().sum(1)) / sigma**2
            means.append((log_mass + fit).softmax(dim=1) @ nodes)
        return torch.cat(means)

    def _mean_near(self, path: GaussianPath, t: Tensor, x: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
        """E[of(x_1) | x_t = x] by Gauss–Hermite quadrature around x/α_t, where q hardly changes over σ_t/α_t."""
        alpha, sigma = path.alpha(t).to(x), path.sigma(t).to(x)
        z, log_weight = (part.to(x) for part in _hermite(self.dim))
        x_1 = ((x[:, None] + sigma * z) / alpha).reshape(-1, self.dim)
        weight = (log_weight + self._unnormalized(x_1).reshape(len(x), -1)).softmax(dim=1)
        return (weight[:, :, None] * of(x_1).reshape(len(x), -1, self.dim)).sum(1)

    def _unnormalized(self, x: Tensor) -> Tensor:
        free, conditional = self.data.mixture.log_prob(x), self.data.classes[self.label].log_prob(x)
        return (1 - self.w) * free + self.w * conditional


def tilted_gap(
    data: LabeledMixture, label: int, w: float | int, path: GaussianPath, t: Time, x: Float[Tensor, "batch dim"]
) -> Float[Tensor, "batch dim"]:
    """The score that guidance uses minus the score that sampling q would need, at one time `t`, of shape ().

        [(1 − w) ∇log p_t(x) + w ∇log p_t(x | y)] − ∇log ∫ q(x_1) N(x; α_t x_1, σ_t² I) dx_1          (eq-tilted-gap)

    Zero for w = 0 and w = 1, and at t = 1; in general nowhere else. For many times, `TiltedDensity` keeps its grid.
    """
    noised_then_tilted = TiltedDensity(data.at_time(path, t), label, w).score(x)
    return noised_then_tilted - TiltedDensity(data, label, w).marginal_score(path, t, x)


# --- Checks and shapes ------------------------------------------------------------------------------------------------


def _check_integers(operation: str, y: Tensor) -> None:
    whole = not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)
    if not whole or y.ndim > 1:
        raise ValueError(
            f"{operation}: received labels of shape {tuple(y.shape)} and {y.dtype}; rule: integers, () or (batch,)"
        )


def _check_labels(operation: str, y: Tensor, null: int, *, or_null: bool = False) -> None:
    """Labels are 0 … null − 1; `null`, which means 'none given', is none of them, but may be told too if `or_null`."""
    _check_integers(operation, y)
    if null < 1:
        raise ValueError(f"{operation}: received null={null}; rule: one more than the largest label, so 1 or more")
    if broken((y >= 0) & (y < null + or_null)):
        also = f"or {null} for 'none given'" if or_null else f"and {null}, for 'none given', is none of them"
        raise ValueError(
            f"{operation}: received labels from {int(y.min())} to {int(y.max())}; rule: 0 … {null - 1}, {also}"
        )


def _null_label(model: ConditionalModel, null: int | None) -> int:
    own = getattr(model, "labels", None)
    if null is None and own is None:
        raise ValueError("Guided: received no null and a model without `labels`; rule: say which label means none")
    if null is not None and own is not None and null != own:
        raise ValueError(f"Guided: received null={null} for a model with {own} labels; rule: its null label is {own}")
    return own if null is None else null


def _check_weight(operation: str, w: Weight) -> None:
    if isinstance(w, Tensor):
        if w.ndim > 1 or not w.is_floating_point():
            raise ValueError(
                f"{operation}: received w {tuple(w.shape)} {w.dtype}; rule: floating point, () or (batch,)"
            )
        finite = not not_finite(w)
    else:
        finite = math.isfinite(w)
    if not finite:
        raise ValueError(f"{operation}: received guidance weight w={w}; rule: finite")


def _is_number(w: Weight, number: int) -> bool:
    return not isinstance(w, Tensor) and w == number


def _shaped(operation: str, w: Weight, x: Tensor) -> Weight:
    """The weight, shaped to multiply x."""
    if not isinstance(w, Tensor) or w.ndim == 0:
        return w
    if len(w) != len(x):
        raise ValueError(f"{operation}: received {len(w)} weights for {len(x)} rows; rule: one for each, or one")
    return w.reshape(-1, *[1] * (x.ndim - 1)).to(x)


def _for_rows(operation: str, y: Tensor, x: Tensor) -> Tensor:
    """One label for each row of x."""
    if y.ndim and len(y) != len(x):
        raise ValueError(f"{operation}: received {len(y)} labels for {len(x)} rows; rule: one for each, or one for all")
    return y.to(x.device).expand(len(x))


def _same_shape(operation: str, value: Tensor, x: Tensor) -> Tensor:
    if value.shape != x.shape:
        raise ValueError(
            f"{operation}: received a model that returns {tuple(value.shape)} for x {tuple(x.shape)}; "
            "rule: the shape of x"
        )
    return value


def _grid(mixture: GaussianMixture, points: int) -> tuple[Tensor, Tensor]:
    """Nodes (points^dim, dim) and their spacing (dim,), eight standard deviations beyond the means."""
    reach = 8 * mixture.eigenvalues.max().sqrt()
    low, high = mixture.means.amin(0) - reach, mixture.means.amax(0) + reach
    spacing, steps = (high - low) / (points - 1), torch.arange(points).to(low)
    axes = [start + step * steps for start, step in zip(low, spacing, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, mixture.dim), spacing


def _hermite(dim: int) -> tuple[Tensor, Tensor]:
    """Nodes (16^dim, dim) and log-weights (16^dim,) for averages over N(0, I)."""
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(16))
    grid = torch.cartesian_prod(*[nodes] * dim).reshape(-1, dim)
    return grid, torch.cartesian_prod(*[weights.log()] * dim).reshape(-1, dim).sum(1)
