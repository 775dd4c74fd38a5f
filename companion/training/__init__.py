"""Training: one loop, an average of the weights, a schedule of the learning rate."""

from companion.training.ema import EMA
from companion.training.loop import Record, fit
from companion.training.optimizers import adam, warmup_cosine

__all__ = ["EMA", "Record", "adam", "fit", "warmup_cosine"]
