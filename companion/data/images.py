"""Real images that need no download: 1,797 handwritten digits of 8 × 8 pixels, from scikit-learn."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

SPLIT_SEED = 0  # of the permutation whose first 1,200 images are for training
TRAIN = 1_200


@dataclass(frozen=True)
class Images:
    """Images with their labels.

    Attributes:
        images: pixels in [−1, 1], −1 is background.
        labels: what each shows.
    """

    images: Float[Tensor, "n channels height width"]
    labels: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> "Images":
        """The same on another device."""
        return Images(self.images.to(device), self.labels.to(device))


def digits(split: str = "train") -> Images:
    """Handwritten digits: 1,200 for training or the other 597 for testing, as (n, 1, 8, 8) in float32.

    The split is the first 1,200 of a permutation drawn with seed 0. Some writers are in both halves: the data set
    does not say who wrote what. Source: Alpaydin and Kaynak 1998, UCI optical recognition of handwritten digits.

    Args:
        split: "train" or "test".
    """
    from sklearn.datasets import load_digits

    check_split("digits", split)
    bunch = load_digits()
    order = torch.randperm(len(bunch.target), generator=torch.Generator().manual_seed(SPLIT_SEED))
    rows = order[:TRAIN] if split == "train" else order[TRAIN:]
    images = torch.from_numpy(bunch.images).float()[:, None] / 8 - 1
    return Images(images[rows], torch.from_numpy(bunch.target).long()[rows])


def check_split(operation: str, split: str) -> None:
    """Raise ValueError unless `split` is one of the two there are."""
    if split not in ("train", "test"):
        raise ValueError(f"{operation}: received split = {split!r}; it is 'train' or 'test'")
