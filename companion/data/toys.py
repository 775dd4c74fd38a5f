r"""Two-dimensional densities with a shape: what one wants to see a model learn, with exact answers.

    eight Gaussians   1/8 Σ_k N(x; R (cos kπ/4, sin kπ/4), s² I)
    two moons         ½ Σ_m 1/π ∫_0^π N(x; c_m(θ), s² I) dθ,    c_0(θ) = (cos θ, sin θ), c_1(θ) = (1 − cos θ, ½ − sin θ)
    ring              1/2π ∫ N(x; R (cos θ, sin θ), s² I) dθ = exp(−(|x|² + R²)/2s²) I_0(R |x|/s²) / 2πs²
    checkerboard      uniform on every second of 4 × 4 squares

I_0 is the modified Bessel function. The integral along the moons is taken by Gauss–Legendre quadrature with several
nodes per s, which makes the moons a mixture of Gaussians to the accuracy stated in `TwoMoons`.
"""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from companion.data.densities import Density, Gaussian, GaussianMixture
from companion.device import rand, randn


def standard_normal(dim: int, *, dtype: torch.dtype | None = None) -> Gaussian:
    """N(0, I) on points of `dim` numbers."""
    return Gaussian(torch.zeros(dim, dtype=dtype), torch.eye(dim, dtype=dtype))


def eight_gaussians(scale: float = 4.0, std: float = 0.4, *, dtype: torch.dtype | None = None) -> GaussianMixture:
    """Eight round Gaussians of standard deviation `std` on a circle of radius `scale`."""
    _require_positive("eight_gaussians", scale=scale, std=std)
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
    means = scale * torch.stack([angle.cos(), angle.sin()], dim=1)
    covariances = std**2 * torch.eye(2, dtype=torch.float64).expand(8, 2, 2)
    dtype = dtype or torch.get_default_dtype()
    return GaussianMixture(means.to(dtype), covariances.to(dtype))


def two_moons(
    noise: float = 0.1,
    *,
    scale: float = 1.0,
    shift: tuple[float, float] = (0.0, 0.0),
    dtype: torch.dtype | None = None,
) -> "TwoMoons":
    """Two interleaving half circles of radius 1 with Gaussian noise, then x ↦ scale · x + shift."""
    return TwoMoons(noise, scale=scale, shift=shift, dtype=dtype)


def ring(radius: float = 2.0, std: float = 0.2, *, dtype: torch.dtype | None = None) -> "Ring":
    """A circle with Gaussian noise."""
    return Ring(radius, std, dtype=dtype)


def checkerboard(scale: float = 2.0, *, dtype: torch.dtype | None = None) -> "Checkerboard":
    """Uniform on every second of the 4 × 4 squares of [−scale, scale]²."""
    return Checkerboard(scale, dtype=dtype)


class TwoMoons(GaussianMixture):
    """The moons as a mixture along the arcs, which gives every closed form of a mixture; sampled without quadrature.

    There are ⌈8/noise⌉ nodes an arc. log p is then exact to 1e-6 within six standard deviations of the arcs and to
    rounding near them (the tests compare with adaptive quadrature).

    Args:
        noise: standard deviation s of the noise around the arcs, before scaling.
        scale: factor of the whole picture.
        shift: what is added after scaling.
        dtype: of samples and parameters.
    """

    def __init__(
        self,
        noise: float = 0.1,
        *,
        scale: float = 1.0,
        shift: tuple[float, float] = (0.0, 0.0),
        dtype: torch.dtype | None = None,
    ):
        _require_positive("two_moons", noise=noise, scale=scale)
        self.noise, self.scale, self.shift = noise, scale, shift
        dtype = dtype or torch.get_default_dtype()
        nodes, weights = np.polynomial.legendre.leggauss(math.ceil(8 / noise))
        angles = torch.from_numpy((nodes + 1) * math.pi / 2)
        means = self._place(torch.cat([_arc(angles, 0), _arc(angles, 1)]))
        variance = (scale * noise) ** 2 * torch.eye(2, dtype=torch.float64)
        both = torch.from_numpy(np.concatenate([weights, weights]))
        super().__init__(means.to(dtype), variance.expand(len(means), 2, 2).to(dtype), both.to(dtype))

    def sample(self, n: int, *, generator: torch.Generator) -> Float[Tensor, "n dim"]:
        """`n` points: a moon by a fair coin, a uniform angle, Gaussian noise."""
        moon = torch.randint(2, (n, 1), generator=generator)
        angle = math.pi * rand(n, generator=generator, dtype=self.means.dtype)
        arc = torch.where(moon == 0, _arc(angle, 0), _arc(angle, 1))
        noise = self.noise * randn(n, 2, generator=generator, dtype=self.means.dtype)
        return self._place(arc + noise)

    def _place(self, x: Tensor) -> Tensor:
        return self.scale * x + torch.tensor(self.shift, dtype=x.dtype)


class Ring(Density):
    """A circle with Gaussian noise.

    Args:
        radius: R, radius of the circle.
        std: s, standard deviation of the noise.
        dtype: of samples.
    """

    dim = 2

    def __init__(self, radius: float = 2.0, std: float = 0.2, *, dtype: torch.dtype | None = None):
        _require_positive("ring", radius=radius, std=std)
        self.radius, self.std, self.dtype = radius, std, dtype or torch.get_default_dtype()

    def sample(self, n: int, *, generator: torch.Generator) -> Float[Tensor, "n dim"]:
        """`n` points: a uniform angle, then Gaussian noise."""
        angle = 2 * math.pi * rand(n, generator=generator, dtype=self.dtype)
        circle = self.radius * torch.stack([angle.cos(), angle.sin()], dim=1)
        return circle + self.std * randn(n, 2, generator=generator, dtype=self.dtype)

    def log_prob(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, " batch"]:
        """−(|x| − R)²/2s² + log(e^{−κ} I_0(κ)) − log 2πs² with κ = R |x|/s²."""
        self._check("log_prob", x)
        r, s = torch.linalg.vector_norm(x, dim=1), self.std
        bessel = torch.special.i0e(self.radius * r / s**2).log()
        return -((r - self.radius) ** 2) / (2 * s**2) + bessel - math.log(2 * math.pi * s**2)


class Checkerboard(Density):
    """Uniform on every second of the 4 × 4 squares of [−scale, scale]².

    Args:
        scale: half the side of the board.
        dtype: of samples.
    """

    dim = 2

    def __init__(self, scale: float = 2.0, *, dtype: torch.dtype | None = None):
        _require_positive("checkerboard", scale=scale)
        self.scale, self.dtype = scale, dtype or torch.get_default_dtype()

    def sample(self, n: int, *, generator: torch.Generator) -> Float[Tensor, "n dim"]:
        """`n` points: a square, then uniform in it."""
        row = torch.randint(4, (n,), generator=generator)
        column = 2 * torch.randint(2, (n,), generator=generator) + row % 2
        corner = torch.stack([column, row], dim=1).to(self.dtype)
        return self.scale * ((corner + rand(n, 2, generator=generator, dtype=self.dtype)) / 2 - 1)

    def log_prob(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, " batch"]:
        """−log of the area of the eight squares, 2 · scale², on them, and −∞ elsewhere."""
        self._check("log_prob", x)
        inside = torch.full((len(x),), -math.log(2 * self.scale**2)).to(x)
        return inside.where(self._holds(x), -math.inf)

    def score(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch 2"]:
        """0 on the squares, where the density is flat, and NaN elsewhere, where log p = −∞ has no slope."""
        self._check("score", x)
        return torch.zeros_like(x).where(self._holds(x)[:, None], math.nan)

    def _holds(self, x: Tensor) -> Tensor:
        square = (2 * (x / self.scale + 1)).floor()
        on_board = ((square >= 0) & (square < 4)).all(dim=1)
        return on_board & (square.sum(dim=1) % 2 == 0)


def _arc(angle: Tensor, moon: int) -> Tensor:
    x, y = angle.cos(), angle.sin()
    return torch.stack([x, y] if moon == 0 else [1 - x, 0.5 - y], dim=-1)


def _require_positive(operation: str, **values: float) -> None:
    for name, value in values.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{operation}: received {name} = {value}; it must be positive and finite")
