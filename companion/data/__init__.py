"""Data with known answers (toy densities), real data that needs no download (digits), and files (IDX)."""

from companion.data.batches import draws, minibatches
from companion.data.densities import Density, Gaussian, GaussianMixture
from companion.data.empirical import Empirical
from companion.data.idx import load_idx, mnist
from companion.data.images import Images, digits
from companion.data.toys import checkerboard, eight_gaussians, ring, standard_normal, two_moons

__all__ = [
    "Density",
    "Empirical",
    "Gaussian",
    "GaussianMixture",
    "Images",
    "checkerboard",
    "digits",
    "draws",
    "eight_gaussians",
    "load_idx",
    "minibatches",
    "mnist",
    "ring",
    "standard_normal",
    "two_moons",
]
