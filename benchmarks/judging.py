"""Samples of digits against the 597 test images, in the features of one classifier.

A Fréchet distance says little without a scale, and there are two, both from training images in the place of samples:
the floor, where they have the labels of the test images, and the unit, where they are taken as they come.
"""

import functools
import statistics
from dataclasses import dataclass

import torch
from torch import Tensor

from companion.data import Images, digits
from companion.device import generator
from companion.metrics import DigitJudge, copying, frechet_distance, precision_recall


@dataclass(frozen=True)
class Score:
    """What samples are worth.

    Attributes:
        frechet: distance to the test images.
        precision: share of samples that pass for test images.
        recall: share of test images that pass for samples.
        copying: distance to training images over distance to test images; 1 is no copying.
        accuracy: share of samples in which a second classifier sees the label that was wanted; None where none was.
    """

    frechet: float
    precision: float
    recall: float
    copying: float
    accuracy: float | None = None


def judged(samples: Tensor, labels: Tensor | None = None) -> Score:
    """The samples against the test images, and against the labels that were wanted, if any."""
    test, judge = digits("test").images, DigitJudge()
    real, fake = judge.features(test), judge.features(samples)
    return Score(
        frechet=frechet_distance(fake, real),
        **precision_recall(real, fake)._asdict(),
        copying=copying(samples, digits("train").images, test),
        accuracy=None if labels is None else float((DigitJudge(1).predict(samples) == labels).double().mean()),
    )


def frechet(images: Tensor) -> float:
    """Fréchet distance of the images from the test images."""
    judge = DigitJudge()
    return frechet_distance(judge.features(images), judge.features(digits("test").images))


def unit() -> float:
    """The Fréchet distance of training images, as many as there are test images."""
    return frechet(digits("train").images[: len(digits("test"))])


@functools.cache
def floor(draws: int = 20) -> float:
    """The mean Fréchet distance of training images that have the labels of the test images."""
    train, test, judge, source = digits("train"), digits("test"), DigitJudge(), generator(0)
    real, ours = judge.features(test.images), judge.features(train.images)
    subsets = (ours[matched(train, test, source)] for _ in range(draws))
    return statistics.fmean(frechet_distance(subset, real) for subset in subsets)


def matched(train: Images, test: Images, source: torch.Generator) -> Tensor:
    """Rows of training images with the labels of the test images."""
    order = torch.randperm(len(train), generator=source)
    labels, counts = train.labels[order], test.labels.bincount(minlength=10).tolist()
    return torch.cat([order[labels == digit][:count] for digit, count in enumerate(counts)])
