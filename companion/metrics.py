r"""How far samples are from data: distances of distributions, fidelity and diversity, copying, energy of paths.

    W_2² = min_π Σ_ij π_ij |x_i − y_j|²                                                exact optimal transport
    E²   = 2 E|X − Y| − E|X − X'| − E|Y − Y'|                                          energy distance, squared
    F    = |μ_x − μ_y|² + tr(Σ_x + Σ_y − 2 (Σ_x^½ Σ_y Σ_x^½)^½)                        Fréchet distance of features
    PE   = E ∫_0^1 |v_t(x_t)|² dt ≥ W_2²(p_0, p_1)                                     path energy of a flow

Each is a number about finite samples: compare only equal sizes, and against the same metric of data with data. All
are computed in float64. Sources: Székely and Rizzo 2013; Heusel et al. 2017, section 2; Kynkäänniemi et al. 2019,
section 2; Tong et al. 2024, section 5 (path energy, Benamou and Brenier 2000 for its bound).
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from companion.data.batches import minibatches
from companion.data.images import digits
from companion.device import generator, randn_like, seeded
from companion.numerics import transport
from companion.numerics.ode import DormandPrince, FixedStepSolver, integrate

Points = Float[Tensor, "batch dim"]
Solver = FixedStepSolver | DormandPrince
BLOCK = 1_024  # rows whose distances to all others are held at a time


def wasserstein2(x: Float[Tensor, "n dim"], y: Float[Tensor, "m ..."]) -> float:
    """The exact Wasserstein distance W_2 of two samples, in the units of the points; cubic in their number."""
    return float(transport.wasserstein(x, y, p=2))


def energy_distance(x: Float[Tensor, "n dim"], y: Float[Tensor, "m ..."]) -> float:
    """E of two samples (the square root, as in scipy): 0 if and only if the distributions are equal."""
    _check_pair("energy_distance", x, y)
    squared = 2 * _mean_distance(x, y) - _mean_distance(x, x) - _mean_distance(y, y)
    return math.sqrt(max(0.0, squared))


def frechet_distance(x: Float[Tensor, "n dim"], y: Float[Tensor, "m ..."]) -> float:
    """F between Gaussians fitted to two samples of features (a squared distance).

    It sees means and covariances only, and is biased upwards for small samples: by about the number of features
    over the number of samples, in units of the features' variance.
    """
    _check_pair("frechet_distance", x, y)
    if min(len(x), len(y)) < 2:
        raise ValueError(
            f"frechet_distance: received {len(x)} and {len(y)} samples; rule: at least two each, for a covariance"
        )
    x, y = x.double(), y.double()
    root_x, root_y = _root(x.T.cov()), _root(y.T.cov())
    # tr (A B² A)^½ is the sum of the singular values of AB.
    cross = torch.linalg.svdvals(root_x @ root_y).sum()
    means = (x.mean(dim=0) - y.mean(dim=0)).square().sum()
    return max(0.0, float(means + root_x.square().sum() + root_y.square().sum() - 2 * cross))


class PrecisionRecall(NamedTuple):
    """Fidelity and diversity.

    Attributes:
        precision: share of the fake samples that lie in the manifold of the real ones.
        recall: share of the real samples that lie in the manifold of the fake ones.
    """

    precision: float
    recall: float


def precision_recall(real: Float[Tensor, "n dim"], fake: Float[Tensor, "m ..."], *, k: int = 3) -> PrecisionRecall:
    """Precision and recall, where the manifold of a sample is the union of balls that reach to the k-th neighbor.

    Args:
        real: features of data.
        fake: features of samples.
        k: which neighbor within the same sample sets the radius.
    """
    _check_pair("precision_recall", real, fake)
    if not 1 <= k < min(len(real), len(fake)):
        raise ValueError(
            f"precision_recall: received k = {k} for {len(real)} and {len(fake)} points; rule: 1 ≤ k < both"
        )
    real, fake = real.double(), fake.double()
    between = _distances(real, fake)
    radius_real, radius_fake = _kth_neighbor(real, k), _kth_neighbor(fake, k)
    return PrecisionRecall(
        precision=float((between < radius_real[:, None]).any(dim=0).double().mean()),
        recall=float((between < radius_fake).any(dim=1).double().mean()),
    )


def copying(
    samples: Float[Tensor, "n *shape"], train: Float[Tensor, "m *shape"], test: Float[Tensor, "k *shape"]
) -> float:
    """Mean distance to the nearest training datum over that to the nearest test datum: 1 is no copying.

    A larger set has nearer neighbors, so the training data are taken in blocks as large as the test data, and the
    distances to the blocks are averaged. A copy of a training datum is at distance 0 of its own block only, and as far
    from the others as new data are. Exact copies of all training data therefore score 1 − 1/blocks, with
    blocks = len(train) // len(test): 0 if the two sets are equally large, and 1/2, not 0, for 1,200 training digits
    against 597. Read a score against that floor; `copying(train, train, test)` measures it.

    It sees copies of whole data, in the metric of the pixels: neither a copied stroke nor a shifted copy. A blurred
    mean of many digits lies between both sets and scores about 1.

    Args:
        samples: what is suspected, (n, *shape).
        train: the data that may have been copied, at least as many as `test`; what does not fill a block is left out.
        test: data of the same distribution that nobody has trained on.
    """
    if len(train) < len(test):
        raise ValueError(
            f"copying: received {len(train)} training and {len(test)} test data; rule: not fewer for training"
        )
    samples, train, test = (points.flatten(1).double() for points in (samples, train, test))
    blocks = train[: len(train) // len(test) * len(test)].split(len(test))
    to_train = torch.stack([_nearest(samples, block).mean() for block in blocks]).mean()
    return float(to_train / _nearest(samples, test).mean())


def path_energy(v: Callable[[Tensor, Tensor], Tensor], x_0: Points, *, solver: Solver | None = None) -> float:
    """E ∫_0^1 |v_t(x_t)|² dt along the trajectories that start at `x_0`: what the flow moves, and how fast.

    Straight paths at constant speed between the right partners reach the least value, W_2²(p_0, p_1).

    Args:
        v: the field, v(t, x).
        x_0: starts.
        solver: of `companion.numerics.ode`; None is Dormand–Prince at tolerance 1e-5.
    """
    dim = x_0.shape[1]

    def with_energy(t: Tensor, state: Tensor) -> Tensor:
        velocity = v(t, state[:, :dim])
        return torch.cat([velocity, velocity.square().sum(dim=1, keepdim=True)], dim=1)

    start = torch.cat([x_0, torch.zeros_like(x_0[:, :1])], dim=1)
    with torch.no_grad():
        end = integrate(with_energy, start, solver or DormandPrince()).final
    return float(end[:, dim].double().mean())


def normalized_path_energy(
    v: Callable[[Tensor, Tensor], Tensor], x_0: Points, x_1: Points, *, solver: Solver | None = None
) -> float:
    """|PE − W_2²| / W_2²: 0 for optimal transport of the starts `x_0` to data like `x_1`."""
    least = wasserstein2(x_0, x_1) ** 2
    return abs(path_energy(v, x_0, solver=solver) - least) / least


class DigitJudge(nn.Module):
    """A classifier of the 8 × 8 digits: its features are where Fréchet distance, precision and recall are measured.

    conv 1 → 24, ReLU, max-pool; conv 24 → 48, ReLU; linear 768 → 64, ReLU (the features); linear 64 → 10. It is
    trained when it is made, the same way for the same seed: 1,000 AdamW steps on the 1,200 training digits with noise
    0.2 and shifts by one pixel, about 0.99 right on the test digits. Made a second time, it is remembered.

    Args:
        seed: of weights, order and noise. Judge with one seed what another seed has guided.
    """

    def __init__(self, seed: int = 0):
        super().__init__()
        self.to_features, self.to_scores = _layers()
        self.load_state_dict(_trained(seed))
        self.eval().requires_grad_(False)

    def features(self, images: Float[Tensor, "n channels height width"]) -> Float[Tensor, "n 64"]:
        """The 64 features of each image, pixels in [−1, 1]."""
        if images.shape[1:] != (1, 8, 8):
            raise ValueError(f"DigitJudge: received images of shape {tuple(images.shape)}; rule: (n, 1, 8, 8)")
        return self.to_features(images)

    def forward(self, images: Float[Tensor, "n channels height width"]) -> Float[Tensor, "n 10"]:
        """The score of each digit, before the softmax."""
        return self.to_scores(self.features(images))

    def predict(self, images: Float[Tensor, "n channels height width"]) -> Int[Tensor, " n"]:
        """The digit that each image shows."""
        return self(images).argmax(dim=1)


def _layers() -> tuple[nn.Sequential, nn.Linear]:
    features = nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(24, 48, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(768, 64),
        nn.ReLU(),
    )
    return features, nn.Linear(64, 10)


@functools.cache
def _trained(seed: int, steps: int = 1_000) -> dict[str, Tensor]:
    """The weights of the judge, after its training."""
    source = generator(seed)
    with seeded(source):
        features, scores = _layers()
    model = nn.ModuleDict({"to_features": features, "to_scores": scores})
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    data = digits("train")
    batches = minibatches(data.images, data.labels, size=128, generator=source)
    for _, (images, labels) in zip(range(steps), batches, strict=False):
        optimizer.zero_grad()
        F.cross_entropy(scores(features(_disturbed(images, source))), labels).backward()
        optimizer.step()
        schedule.step()
    return model.state_dict()


def _disturbed(images: Tensor, source: torch.Generator) -> Tensor:
    """The images, each shifted by up to a pixel up or down, left or right, and noisy."""
    n, pixel = len(images), torch.arange(8)
    down, right = torch.randint(3, (2, n, 1), generator=source)
    padded = F.pad(images[:, 0], (1, 1, 1, 1), value=-1.0)
    shifted = padded[torch.arange(n)[:, None, None], (down + pixel)[:, :, None], (right + pixel)[:, None, :]]
    return shifted[:, None] + 0.2 * randn_like(images, generator=source)


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(torch.atleast_2d(covariance))
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def _distances(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _mean_distance(x: Tensor, y: Tensor) -> float:
    x, y = x.double(), y.double()
    return math.fsum(float(_distances(rows, y).sum()) for rows in x.split(BLOCK)) / (len(x) * len(y))


def _nearest(x: Tensor, y: Tensor) -> Tensor:
    return torch.cat([_distances(rows, y).amin(dim=1) for rows in x.split(BLOCK)])


def _kth_neighbor(x: Tensor, k: int) -> Tensor:
    """Distance of each row to its k-th nearest other row."""
    return torch.cat([_distances(rows, x).kthvalue(k + 1, dim=1).values for rows in x.split(BLOCK)])


def _check_pair(operation: str, x: Tensor, y: Tensor) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or x.numel() == 0 or y.numel() == 0:
        raise ValueError(
            f"{operation}: received points of shapes {tuple(x.shape)} and {tuple(y.shape)}; "
            "rule: (n, dim) and (m, dim) with the same dim, not empty"
        )
    if not (x.isfinite().all() and y.isfinite().all()):
        raise ValueError(f"{operation}: received points with NaN or infinity; rule: every entry is finite")
