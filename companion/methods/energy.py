r"""Energy-based models: an energy E is low where an answer is good, and nothing needs to be normalized to use it.

    ŷ = argmin_y E(x, y)                                                                                (inference)
    p(y | x) = e^{−βE(x, y)} / ∫ e^{−βE(x, y')} dy'                                                      (eq-gibbs)
    F_β(x, y) = −(1/β) log ∫ e^{−βE(x, y, z)} dz                                                 (eq-free-energy)
    F_β(x, y) → min_z E(x, y, z)  for β → ∞                                                       (eq-free-energy-limit)

`x` is observed, `y` is wanted, `z` is neither (a latent); β is an inverse temperature. An energy has no absolute zero:
E + c has the same argmin and the same Gibbs density. An integral has a measure, which is an argument here: `measure`
is the width of a cell where the integral is a sum over a grid, and 1 where the answers are labels and are counted.

Learning pushes the energy of what is right down and that of something else up; the losses differ in what else. For a
density of x alone, p_θ(x) = e^{−E_θ(x)} / Z_θ, the negative log-likelihood pushes down on data and up on its own
samples,

    ∂/∂θ E_data[−log p_θ] = E_data[∂E_θ/∂θ] − E_{p_θ}[∂E_θ/∂θ],                                    (eq-nll-gradient)

and contrastive divergence takes those samples from a short Markov chain (`companion.numerics.sampling`). Score
matching needs neither samples nor Z: the score s = −∇_x E does not contain it.

Sources: LeCun et al. 2006, A tutorial on energy-based learning (table 1: the losses); Hinton 2002 (contrastive
divergence); Du and Mordatch 2019 (replay buffer); Hyvärinen 2005, theorem 1 (score matching); Song et al. 2019
(sliced); Vincent 2011 (denoising).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from companion.data.batches import Source
from companion.device import rand
from companion.numerics._checks import broken, is_whole, not_finite
from companion.numerics.autodiff import value_and_divergence, value_and_hutchinson_divergence

Energy = Callable[[Tensor], Tensor]  # (batch, ...) -> (batch,)
PairEnergy = Callable[[Tensor, Tensor], Tensor]  # x (batch, ...), y (batch, ...) -> (batch,)
Score = Callable[[Tensor], Tensor]
Measure = float | Tensor


# --- From energies to probabilities -----------------------------------------------------------------------------------


def free_energy(E: Float[Tensor, "*dims"], *, beta: float, dim: int = -1, measure: Measure) -> Float[Tensor, "*rest"]:
    """−(1/β) log ∫ e^{−βE} dz, with the integral as a sum over the entries of one dimension.

    Args:
        E: energies on a grid of z, or for each label.
        beta: inverse temperature, positive; `math.inf` gives the least energy.
        dim: the dimension that is summed over.
        measure: what one entry weighs: dz for a uniform grid, a tensor of weights for any quadrature rule or prior,
            1 for labels.

    Returns:
        The shape of E without `dim`. For β → ∞ the measure no longer matters, at every finite β it does.
    """
    _check_temperature("free_energy", beta)
    _check_energies("free_energy", E)
    if beta == math.inf:
        return E.amin(dim)
    return -torch.logsumexp(-beta * E + _log_measure("free_energy", E, measure), dim) / beta


def gibbs(E: Float[Tensor, "*dims"], *, beta: float = 1.0, dim: int = -1, measure: Measure) -> Float[Tensor, "*dims"]:
    """The Gibbs density e^{−βE} / ∫ e^{−βE} dy at each entry: its sum along `dim`, times the measure, is 1.

    Args:
        E: energies on a grid of y, or for each label.
        beta: inverse temperature, positive and finite.
        dim: the dimension of y.
        measure: as for `free_energy`. For labels (1) the densities are probabilities.
    """
    _check_temperature("gibbs", beta, finite=True)
    _check_energies("gibbs", E)
    log_z = torch.logsumexp(-beta * E + _log_measure("gibbs", E, measure), dim, keepdim=True)
    return torch.exp(-beta * E - log_z)


def _log_measure(operation: str, E: Tensor, measure: Measure) -> Tensor:
    weights = torch.as_tensor(measure, dtype=E.dtype, device=E.device)
    try:
        fits = torch.broadcast_shapes(weights.shape, E.shape) == E.shape
    except RuntimeError:
        fits = False
    if not fits or broken((weights >= 0) & weights.isfinite()) or broken(weights.sum() > 0):
        raise ValueError(
            f"{operation}: received a measure of shape {tuple(weights.shape)} for energies {tuple(E.shape)}; "
            "rule: a positive number, or weights ≥ 0 that broadcast to the energies and are not all 0"
        )
    return weights.log()


# --- Inference --------------------------------------------------------------------------------------------------------


def argmin_over(E: Float[Tensor, "batch *answers"], *values: Tensor) -> tuple[Tensor, ...]:
    """Exhaustive inference: the least of all energies, and where it is.

    Args:
        E: energies (batch, n_1, …, n_k), an axis for each unknown: (batch, answers) or (batch, answers, latents).
        values: for each axis what its entries stand for, (n_i,) or (n_i, dim).

    Returns:
        The least energy (batch,), then for each axis the value there, (batch,) or (batch, dim).
    """
    _check_energies("argmin_over", E)
    lengths = tuple(len(value) for value in values)
    if not values or E.shape[1:] != lengths or 0 in lengths:
        raise ValueError(
            f"argmin_over: received energies {tuple(E.shape)} and {lengths} values; "
            "rule: one axis after the batch for each tensor of values, as long as it"
        )
    least, place = E.flatten(1).min(1)
    where = torch.unravel_index(place, E.shape[1:])
    return least, *(value[index] for value, index in zip(values, where, strict=True))


def descend(
    energy: Energy, y: Float[Tensor, "batch *dims"], *, rate: float, steps: int
) -> Float[Tensor, "points batch *dims"]:
    """Inference by gradient descent, y ← y − rate ∇E(y): the whole path. It ends where the slope is 0, not the energy.

    Args:
        energy: E(y), (batch, ...) → (batch,).
        y: starting points.
        rate: step size, positive.
        steps: number of steps.

    Returns:
        (steps + 1, batch, ...), the start first. No gradients are recorded.
    """
    if not (math.isfinite(rate) and rate > 0) or not is_whole(steps, least=0):
        raise ValueError(f"descend: received rate = {rate}, steps = {steps}; rule: rate > 0, steps whole and 0 or more")
    path = [y.detach()]
    with torch.no_grad():
        for step in range(1, steps + 1):
            path.append(path[-1] + rate * score(energy, path[-1]))
            if not_finite(path[-1]):
                raise ValueError(
                    f"descend: received rate = {rate:g}, and a point left the finite numbers at step {step}; "
                    "rule: rate < 2/a, where a is the largest curvature of the energy on the way"
                )
    return torch.stack(path)


def score(energy: Energy, x: Float[Tensor, "batch *dims"], *, beta: float = 1.0) -> Float[Tensor, "batch *dims"]:
    """−β ∇E(x), the score of p ∝ e^{−βE}, by automatic differentiation.

    Args:
        energy: E(x), (batch, ...) → (batch,); each energy depends on its own point only.
        x: points.
        beta: inverse temperature.

    Returns:
        The shape of x; a function of the energy's parameters that can be differentiated, unless gradients are off.
        Not finite where the energy is not: a chain or a descent that gets there says at which step.
    """
    graph = torch.is_grad_enabled()
    with torch.enable_grad():
        point = x if graph and x.requires_grad else x.detach().requires_grad_()
        E = energy(point)
        _check_one_each("score", E, point)
        if not E.requires_grad:  # a constant
            return torch.zeros_like(x)
        (slope,) = torch.autograd.grad(E.sum(), point, create_graph=graph, materialize_grads=True)
    return -beta * slope


# --- Families of energies ---------------------------------------------------------------------------------------------


class RegressionEnergy(nn.Module):
    """E(x, y) = ½ ‖y − g(x)‖²: a bowl around g(x) whose shape is fixed, so that no choice of g makes it flat.

    Args:
        g: x ↦ a prediction of the shape of y.
    """

    def __init__(self, g: Callable[[Tensor], Tensor]):
        super().__init__()
        self.g = g

    def forward(self, x: Float[Tensor, "batch ..."], y: Float[Tensor, "batch ..."]) -> Float[Tensor, " batch"]:
        """The energy of each pair."""
        return _half_square("RegressionEnergy", self.g(x), y)


class ImplicitRegressionEnergy(nn.Module):
    """E(x, y) = ½ ‖g_x(x) − g_y(y)‖²: several answers may fit one x; where both maps are constant all do.

    Args:
        g_x: x ↦ features.
        g_y: y ↦ features of the same shape.
    """

    def __init__(self, g_x: Callable[[Tensor], Tensor], g_y: Callable[[Tensor], Tensor]):
        super().__init__()
        self.g_x, self.g_y = g_x, g_y

    def forward(self, x: Float[Tensor, "batch ..."], y: Float[Tensor, "batch ..."]) -> Float[Tensor, " batch"]:
        """The energy of each pair."""
        return _half_square("ImplicitRegressionEnergy", self.g_x(x), self.g_y(y))


class BinaryEnergy(nn.Module):
    """E(x, y) = −y g(x) for y ∈ {−1, 1}: the answer is the sign of g(x).

    Args:
        g: x ↦ one number, (batch,) or (batch, 1).
    """

    def __init__(self, g: Callable[[Tensor], Tensor]):
        super().__init__()
        self.g = g

    def forward(self, x: Float[Tensor, "batch ..."], y: Tensor) -> Float[Tensor, " batch"]:
        """The energy of each pair, y (batch,)."""
        if y.shape != x.shape[:1] or broken(y.abs() == 1):
            raise ValueError(
                f"BinaryEnergy: received y of shape {tuple(y.shape)} for x {tuple(x.shape)}; "
                "rule: (batch,), each −1 or 1"
            )
        return -y * self._value(x)

    def table(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch 2"]:
        """The energies of both answers: y = −1 in column 0, y = 1 in column 1."""
        g = self._value(x)
        return torch.stack([g, -g], dim=1)

    def _value(self, x: Tensor) -> Tensor:
        g = self.g(x)
        if g.shape not in ((len(x),), (len(x), 1)):
            raise ValueError(f"BinaryEnergy: received g(x) of shape {tuple(g.shape)}; rule: (batch,) or (batch, 1)")
        return g.reshape(len(x))


class MultiClassEnergy(nn.Module):
    """E(x, y) = −g_y(x) for labels y = 0, 1, …: an energy for each, independent of the others.

    Args:
        g: x ↦ a score for each label, (batch, labels).
    """

    def __init__(self, g: Callable[[Tensor], Tensor]):
        super().__init__()
        self.g = g

    def forward(self, x: Float[Tensor, "batch ..."], y: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """The energy of each pair."""
        return Answers.of_labels(self.table(x), y).right

    def table(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch labels"]:
        """The energies of all labels."""
        return -self.g(x)


class ReconstructionEnergy(nn.Module):
    """E(y, z) = ½ ‖y − g(z)‖² + R(z): how badly the latent z explains y, and what that z costs.

    If g reaches every y at no cost, min_z E = 0 everywhere, a flat energy. The information in z must be limited: by a
    penalty R, by few dimensions, or by few values (`codebook_energies`).

    Args:
        decode: g, z ↦ a reconstruction of the shape of y.
        penalty: R, (batch, ...) → (batch,); none is 0.
    """

    def __init__(self, decode: Callable[[Tensor], Tensor], penalty: Callable[[Tensor], Tensor] | None = None):
        super().__init__()
        self.decode, self.penalty = decode, penalty

    def forward(self, y: Float[Tensor, "batch ..."], z: Float[Tensor, "batch ..."]) -> Float[Tensor, " batch"]:
        """The energy of each pair."""
        E = _half_square("ReconstructionEnergy", self.decode(z), y)
        return E if self.penalty is None else E + self.penalty(z)


def codebook_energies(
    y: Float[Tensor, "batch *dims"], codes: Float[Tensor, "codes ..."]
) -> Float[Tensor, "batch codes"]:
    """½ ‖y − w_z‖² for z = 1 … K: a latent that holds log₂ K bits. Its minimum over z is the energy of K-means."""
    if y.shape[1:] != codes.shape[1:]:
        raise ValueError(
            f"codebook_energies: received y {tuple(y.shape)} and codes {tuple(codes.shape)}; "
            "rule: equal after the first"
        )
    return 0.5 * (y.flatten(1)[:, None] - codes.flatten(1)).square().sum(2)


def _half_square(operation: str, prediction: Tensor, y: Tensor) -> Tensor:
    if prediction.shape != y.shape:
        raise ValueError(
            f"{operation}: received {tuple(prediction.shape)} against {tuple(y.shape)}; rule: equal shapes"
        )
    return 0.5 * (prediction - y).flatten(1).square().sum(1)


# --- What a loss sees -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answers:
    """The energies of a batch of examples, sorted by what a loss asks of them.

    Attributes:
        right: energy of the desired answer of each example, (batch,).
        all: energies of all answers, (batch, answers): the labels, or a grid over y.
        wrong: which of them count as incorrect.
        measure: what one answer weighs in an integral over y: dy for a grid, 1 for labels.
    """

    right: Float[Tensor, " batch"]
    all: Float[Tensor, "batch answers"]
    wrong: Bool[Tensor, "batch answers"]
    measure: float

    def __post_init__(self):
        _check_energies("Answers", self.right)
        _check_energies("Answers", self.all)
        _check_measure("Answers", self.measure)

    @classmethod
    def of_labels(cls, E: Float[Tensor, "batch labels"], y: Int[Tensor, " batch"]) -> "Answers":
        """From a table of energies, one for each label, and the right labels; all others are incorrect."""
        labels = E.shape[1]
        if broken((y >= 0) & (y < labels)):
            raise ValueError(f"Answers.of_labels: received labels outside 0 … {labels - 1}; rule: one of the columns")
        right = E.gather(1, y[:, None])[:, 0]
        return cls(right, E, torch.arange(labels, device=E.device) != y[:, None], 1.0)

    @classmethod
    def on_grid(
        cls,
        energy: PairEnergy,
        x: Float[Tensor, "batch ..."],
        y: Float[Tensor, "batch dim"],
        grid: Float[Tensor, "answers dim"],
        *,
        radius: float,
        measure: float,
    ) -> "Answers":
        """From an energy of pairs, with a grid in place of all y.

        Args:
            energy: E(x, y), (batch, ...) and (batch, dim) → (batch,).
            x: what is observed.
            y: the desired answers; they need not lie on the grid.
            grid: the answers that stand for all.
            radius: points of the grid farther than this from y are incorrect.
            measure: dy, the volume of a cell; 1 if the points of the grid, y among them, are the only answers. A sum
                over cells sees no valley that is narrower than a cell.
        """
        if not radius >= 0:
            raise ValueError(f"Answers.on_grid: received radius = {radius}; rule: 0 or more")
        n, m = len(x), len(grid)
        pairs = energy(x.repeat_interleave(m, dim=0), grid.repeat(n, 1))
        if pairs.shape != (n * m,):
            raise ValueError(
                f"Answers.on_grid: received an energy that returns {tuple(pairs.shape)} for {n * m} pairs; "
                "rule: one number for each"
            )
        # Exact distances: the quick way through ‖y‖² − 2 y·ȳ + ‖ȳ‖² loses the digits that decide at the radius.
        far = (y[:, None] - grid).norm(dim=2) > radius
        return cls(energy(x, y), pairs.reshape(n, m), far, measure)

    @property
    def offending(self) -> Float[Tensor, " batch"]:
        """Energy of ȳ, the incorrect answer that is lowest."""
        if broken(self.wrong.any(1)):
            raise ValueError(
                "Answers: received an example without an incorrect answer; rule: at least two labels, "
                "and a radius that leaves points of the grid outside"
            )
        return self.all.masked_fill(~self.wrong, math.inf).amin(1)

    @property
    def gap(self) -> Float[Tensor, " batch"]:
        """E(x, y) − E(x, ȳ): negative where the right answer wins."""
        return self.right - self.offending


# --- Ten losses -------------------------------------------------------------------------------------------------------

Loss = Callable[[Answers], Tensor]


def energy_loss(answers: Answers) -> Float[Tensor, " batch"]:
    """E(x, y): down on the right answer, up on nothing.

    Only an architecture whose energy cannot become low everywhere keeps it from doing so (`RegressionEnergy`).
    """
    return answers.right


def perceptron_loss(answers: Answers) -> Float[Tensor, " batch"]:
    """E(x, y) − min over all answers, y among them: never negative, and 0 as soon as y is as low as any.

    As 0 is its least value and a flat energy has it, a flat energy is always a minimum.
    """
    return answers.right - torch.minimum(answers.all.amin(1), answers.right)


def hinge_loss(answers: Answers, *, margin: float = 1.0) -> Float[Tensor, " batch"]:
    """max(0, m + E(x, y) − E(x, ȳ)): 0 as soon as the right answer is lower by the margin m (eq-hinge-energy).

    It depends on a difference of two energies. torch's `HingeEmbeddingLoss` takes one distance with a label that says
    similar or dissimilar, and changes when a constant is added to the energies; `MarginRankingLoss` is the relative.
    A flat energy costs m: no minimum for m > 0, one for m = 0.
    """
    _check_not_negative("hinge_loss", margin=margin)
    return (margin + answers.gap).clamp(min=0)


def log_loss(answers: Answers) -> Float[Tensor, " batch"]:
    """log(1 + e^{E(x, y) − E(x, ȳ)}): a hinge without a corner, which never quite stops pushing.

    A flat energy costs log 2, any with the right answer lower costs less. If ȳ may be arbitrarily near y (radius 0),
    no continuous energy does better than log 2, and the flat one is a minimum.
    """
    return F.softplus(answers.gap)


def lvq2_loss(answers: Answers, *, ceiling: float = 1.0) -> Float[Tensor, " batch"]:
    """min(M, max(0, E(x, y) − E(x, ȳ))): it pushes while the wrong answer wins by less than M, and then gives up.

    LVQ2 asks for no margin: 0 is its least value, a flat energy has it and is always a minimum. (Equation 13 of LeCun
    et al. divides the difference by δ E(x, ȳ), which presumes positive energies; this is the form of their table 1.)
    """
    if not ceiling > 0:
        raise ValueError(f"lvq2_loss: received ceiling = {ceiling}; rule: positive")
    return answers.gap.clamp(0, ceiling)


def mce_loss(answers: Answers) -> Float[Tensor, " batch"]:
    """1 / (1 + e^{−(E(x, y) − E(x, ȳ))}): minimum classification error, a soft count of the errors.

    Its slope vanishes on both sides, so hopeless examples do not pull. A flat energy costs ½, any with the right
    answer lower costs less; with radius 0 the flat one is a minimum, as for `log_loss`.
    """
    return torch.sigmoid(answers.gap)


def square_square_loss(answers: Answers, *, margin: float = 1.0) -> Float[Tensor, " batch"]:
    """E(x, y)² + max(0, m − E(x, ȳ))²: the right energy to 0, the wrong one above m.

    The sign is plus. (Table 1 of LeCun et al. prints a minus, their equation 16 a plus: with the minus the loss would
    pull wrong energies down, without end.) It sees values, not differences, and suits energies with a floor at 0. The
    best flat energy is m/2 and costs m²/2, more than 0: no minimum for m > 0; for m = 0 the flat 0 is one.
    """
    _check_not_negative("square_square_loss", margin=margin)
    return answers.right.square() + (margin - answers.offending).clamp(min=0).square()


def square_exponential_loss(answers: Answers, *, weight: float = 1.0) -> Float[Tensor, " batch"]:
    """E(x, y)² + w e^{−E(x, ȳ)}: the right energy to 0, the wrong one up without end.

    No energy is a minimum for w > 0, a flat one neither, as raising E(x, ȳ) always helps; for w = 0 the flat 0 is one.
    The weight is called β in the source, where it has nothing to do with a temperature.
    """
    _check_not_negative("square_exponential_loss", weight=weight)
    return answers.right.square() + weight * torch.exp(-answers.offending)


def nll_loss(answers: Answers, *, beta: float = 1.0) -> Float[Tensor, " batch"]:
    """E(x, y) + (1/β) log ∫ e^{−βE(x, y')} dy': −(1/β) log p(y | x), up on all answers at once (eq-nll-energy).

    Each answer is pushed up by its own probability, the right one among them. On a flat energy of K answers the right
    one is still pushed down by 1 − 1/K: no minimum, unless K = 1. For β → ∞ it becomes the perceptron loss, of which
    the flat energy is a minimum.
    """
    return answers.right - free_energy(answers.all, beta=beta, measure=answers.measure)


def mee_loss(answers: Answers, *, beta: float = 1.0) -> Float[Tensor, " batch"]:
    """1 − e^{−βE(x, y)} / ∫ e^{−βE(x, y')} dy' = 1 − p(y | x): minimum empirical error.

    For labels it is the chance that a draw of the Gibbs distribution is wrong; hopeless examples do not pull. A flat
    energy of K labels costs 1 − 1/K, more than it can: no minimum, unless K = 1. A density p(y | x), in units of 1/y,
    has no ceiling and the loss no floor: one spike pays for all other examples. So it is a loss for labels, or for a
    grid whose points are the only answers (`measure = 1`).
    """
    _check_temperature("mee_loss", beta, finite=True)
    return 1 - torch.exp(-beta * nll_loss(answers, beta=beta))


LOSSES: Mapping[str, Loss] = MappingProxyType(
    {
        "energy": energy_loss,
        "perceptron": perceptron_loss,
        "hinge": hinge_loss,
        "log": log_loss,
        "LVQ2": lvq2_loss,
        "MCE": mce_loss,
        "square-square": square_square_loss,
        "square-exponential": square_exponential_loss,
        "NLL": nll_loss,
        "MEE": mee_loss,
    }
)

FLAT: Mapping[str, str] = MappingProxyType(  # is a flat energy a minimum of the loss?
    {
        "energy": "yes, at the lowest energy there is, unless the architecture forbids a flat one",
        "perceptron": "yes, always",
        "hinge": "only without a margin (m = 0)",
        "log": "only if ȳ may be arbitrarily near y",
        "LVQ2": "yes, always",
        "MCE": "only if ȳ may be arbitrarily near y",
        "square-square": "only without a margin (m = 0)",
        "square-exponential": "only without a weight (w = 0)",
        "NLL": "only with a single answer, or in the limit β → ∞",
        "MEE": "only with a single answer",
    }
)


# --- Learning a density: contrastive divergence -----------------------------------------------------------------------


def contrastive_divergence_loss(
    energy: Energy, x_data: Float[Tensor, "n *dims"], x_model: Float[Tensor, "m ..."], *, decay: float = 0.0
) -> Float[Tensor, ""]:
    """mean E(x_i) − mean E(x̃_j): down on the data, up on samples of the model (eq-contrastive-divergence).

    Its gradient is that of the negative log-likelihood where the x̃_j follow p_θ ∝ e^{−E} (eq-nll-gradient); its value
    is not the likelihood and need not fall. No gradient goes through the x̃_j.

    Args:
        energy: E(x), (batch, ...) → (batch,).
        x_data: the positive phase.
        x_model: the negative phase, from a Markov chain at the current energy; the number of points may differ.
        decay: weight of mean E(x_i)² + mean E(x̃_j)², which keeps both near 0, where nothing else fixes the level.
    """
    _check_not_negative("contrastive_divergence_loss", decay=decay)
    if x_data.shape[1:] != x_model.shape[1:] or 0 in (len(x_data), len(x_model)):
        raise ValueError(
            f"contrastive_divergence_loss: received data {tuple(x_data.shape)} and samples {tuple(x_model.shape)}; "
            "rule: at least one of each, equal after the first"
        )
    # One call for both phases: what an energy does to a batch (normalization, say) it does to both alike.
    E = _energies_of("contrastive_divergence_loss", energy, torch.cat([x_data, x_model.detach()]))
    data, model = E[: len(x_data)], E[len(x_data) :]
    return data.mean() - model.mean() + decay * (data.square().mean() + model.square().mean())


class ReplayBuffer:
    """Markov chains that go on from one training step to the next, so that each needs a few steps only.

    `fresh = 0` is persistent contrastive divergence; `fresh = 1` with the data as the source starts each chain at a
    datum, as Hinton's contrastive divergence does.

    Args:
        source: where chains start, anything with `sample(n, generator=…)`.
        size: number of chains.
        fresh: probability with which a chain starts anew when it is drawn.
        generator: of the first starts.

    Attributes:
        x: where the chains are, (size, ...).
    """

    def __init__(self, source: Source, size: int, *, fresh: float = 0.05, generator: torch.Generator):
        if not is_whole(size, least=1) or not 0 <= fresh <= 1:
            raise ValueError(f"ReplayBuffer: received size = {size}, fresh = {fresh}; rule: size ≥ 1, 0 ≤ fresh ≤ 1")
        self.source, self.fresh = source, fresh
        self.x = source.sample(size, generator=generator).detach().clone()

    def __len__(self) -> int:
        return len(self.x)

    def advance(
        self, kernel: Callable[[Tensor], Tensor], n: int, *, generator: torch.Generator
    ) -> Float[Tensor, "n *dims"]:
        """Draws n different chains, moves them by `kernel`, remembers and returns where they are now.

        Args:
            kernel: a few steps of a Markov chain, such as `lambda x: langevin(score, x, h=…, steps=…, generator=…)`.
            n: number of chains, at most all.
            generator: which chains, and which of them start anew.
        """
        if not is_whole(n, least=1) or n > len(self.x):
            raise ValueError(f"ReplayBuffer.advance: received n = {n} of {len(self.x)} chains; rule: 1 ≤ n ≤ all")
        rows = torch.randperm(len(self.x), generator=generator)[:n].to(self.x.device)
        anew = (rand(n, generator=generator) < self.fresh).to(self.x.device)
        start = self.x[rows]
        if anew.any():
            start[anew] = self.source.sample(int(anew.sum()), generator=generator).to(start)
        end = kernel(start).detach()
        if end.shape != start.shape or not_finite(end):
            raise ValueError(
                f"ReplayBuffer.advance: received a kernel that moves {tuple(start.shape)} to {tuple(end.shape)} or to "
                "numbers that are not finite; rule: the shape of the chains, every entry finite"
            )
        self.x[rows] = end
        return end


# --- Learning a density: score matching -------------------------------------------------------------------------------


def score_matching_loss(score: Score, x: Float[Tensor, "batch *dims"]) -> Float[Tensor, " batch"]:
    """½ ‖s(x)‖² + div s(x), whose mean over data is ½ E ‖s − ∇ log p‖² up to a constant (eq-score-matching).

    It costs one more backward pass for each dimension. It asks that p fall to 0 smoothly: for data with an edge, or
    for finitely many data and a flexible model, its least value is −∞.

    Args:
        score: s(x), the shape of x; such as `lambda x: score(energy, x)`.
        x: data.
    """
    s, trace = value_and_divergence(lambda t, x: score(x), x.new_zeros(()), x)
    return 0.5 * s.flatten(1).square().sum(1) + trace


def sliced_score_matching_loss(
    score: Score, x: Float[Tensor, "batch *dims"], noise: Float[Tensor, "..."]
) -> Float[Tensor, " batch"]:
    """½ ‖s(x)‖² + vᵀ (∂s/∂x) v: the divergence by Hutchinson's estimate, one more backward pass for any dimension.

    Args:
        score: s(x).
        x: data.
        noise: v of mean 0 and covariance I, of the shape of x, or (samples, *shape of x) to average over.
    """
    s, trace = value_and_hutchinson_divergence(lambda t, x: score(x), x.new_zeros(()), x, noise)
    return 0.5 * s.flatten(1).square().sum(1) + trace


def denoising_score_matching_loss(
    score: Score, x: Float[Tensor, "batch *dims"], eps: Float[Tensor, "batch *dims"], *, sigma: float
) -> Float[Tensor, " batch"]:
    """½ ‖s(x + σε) + ε/σ‖²: where did the noise come from? No second derivative (eq-denoising-score-matching).

    Its least value is at the score of the data blurred by σ, p_σ = p * N(0, σ² I), not at that of p.

    Args:
        score: s(x).
        x: data.
        eps: standard normal noise of the shape of x.
        sigma: standard deviation of the blur, positive.
    """
    if x.shape != eps.shape or not (math.isfinite(sigma) and sigma > 0):
        raise ValueError(
            f"denoising_score_matching_loss: received x {tuple(x.shape)}, eps {tuple(eps.shape)}, sigma = {sigma}; "
            "rule: equal shapes, sigma positive"
        )
    return 0.5 * (score(x + sigma * eps) + eps / sigma).flatten(1).square().sum(1)


# --- Checks -----------------------------------------------------------------------------------------------------------


def _energies_of(operation: str, energy: Energy, x: Tensor) -> Tensor:
    E = energy(x)
    _check_one_each(operation, E, x)
    _check_energies(operation, E)
    return E


def _check_one_each(operation: str, E: Tensor, x: Tensor) -> None:
    if E.shape != x.shape[:1]:
        raise ValueError(
            f"{operation}: received an energy that returns {tuple(E.shape)} for points {tuple(x.shape)}; "
            "rule: one number for each, (batch,)"
        )


def _check_energies(operation: str, E: Tensor) -> None:
    if not_finite(E):
        raise ValueError(f"{operation}: received energies that are NaN or infinite; rule: finite numbers")


def _check_temperature(operation: str, beta: float, *, finite: bool = False) -> None:
    if not beta > 0 or (finite and beta == math.inf):
        raise ValueError(
            f"{operation}: received beta = {beta}; rule: a positive {'number' if finite else 'number or infinity'}"
        )


def _check_measure(operation: str, measure: float) -> None:
    if not (math.isfinite(measure) and measure > 0):
        raise ValueError(f"{operation}: received measure = {measure}; rule: positive, 1 for labels, dy for a grid")


def _check_not_negative(operation: str, **values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{operation}: received {name} = {value}; rule: 0 or more")
