"""Training: one loop, an average of the weights, a schedule of the learning rate."""

from companion.training.ema import EMA
from companion.training.loop import Record, fit
from companion.training.optimizers import adam, warmup_cosine, warmup_cosine_in
from companion.training.orthogonal import Muon, muon, orthogonalized

__all__ = ["EMA", "Muon", "Record", "adam", "fit", "muon", "orthogonalized", "warmup_cosine", "warmup_cosine_in"]
