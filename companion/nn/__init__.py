"""Bricks of networks: perceptrons, embeddings, residual blocks, a U-Net."""

from companion.nn.embeddings import FourierFeatures, SinusoidalEmbedding
from companion.nn.mlp import MLP, VelocityMLP
from companion.nn.unet import ResidualBlock, UNet

__all__ = ["MLP", "FourierFeatures", "ResidualBlock", "SinusoidalEmbedding", "UNet", "VelocityMLP"]
