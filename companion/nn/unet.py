r"""A small U-Net: a vector field on images, v(t, x) or v(t, x, y).

    h_0 = conv(x);   down: s_i = blocks_i(h_i), h_{i+1} = halve(s_i);   lowest: blocks, attention, blocks
    up: h_i' = blocks_i'([double(h_{i+1}'), s_i]);   v = conv(h_0')

Each block is told the time and the label y by a scale and a shift of its channels. The last convolution starts at
zero, so an untrained network is the zero field. Sources: Ronneberger et al. 2015; Dhariwal and Nichol 2021, section 3;
Liu et al. 2022 (ConvNeXt: normalizing the channels of a pixel, halving by a convolution of stride 2).

Weights lie in memory channels last, and so do the images between the layers: then a pixel's channels are neighbors,
the normalization reads them in one go and the CPU's convolutions need no reordering. Multiples of 16 channels fill
the CPU's vector registers.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from companion.nn.embeddings import SinusoidalEmbedding, batch_time


class ChannelNorm(nn.LayerNorm):
    """Layer normalization of the channels at each pixel.

    Args:
        channels: number of channels.
        affine: whether each channel gets a scale and a shift that are learned.
    """

    def __init__(self, channels: int, *, affine: bool = True):
        super().__init__(channels, elementwise_affine=affine)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ResidualBlock(nn.Module):
    """x + conv(act(scale · norm(conv(act(norm(x)))) + shift)), scale and shift from the embedding.

    Args:
        channels_in: channels of the input.
        channels_out: channels of the output.
        dim_embedding: length of the embedding.
        dropout: probability of dropping a unit before the second convolution.
    """

    def __init__(self, channels_in: int, channels_out: int, dim_embedding: int, *, dropout: float = 0.0):
        super().__init__()
        self.norm_in = ChannelNorm(channels_in)
        self.conv_in = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.modulation = nn.Linear(dim_embedding, 2 * channels_out)
        self.norm_out = ChannelNorm(channels_out, affine=False)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.conv_out = _zeroed(nn.Conv2d(channels_out, channels_out, 3, padding=1))
        same = channels_in == channels_out
        self.skip = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1)

    def forward(
        self, x: Float[Tensor, "batch channels_in height width"], embedding: Float[Tensor, "batch dim_embedding"]
    ) -> Float[Tensor, "batch channels_out height width"]:
        h = self.conv_in(F.silu(self.norm_in(x)))
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        h = F.silu(torch.addcmul(shift, self.norm_out(h), 1 + scale))
        return self.skip(x) + self.conv_out(self.dropout(h))


class Attention(nn.Module):
    """x + self-attention over the pixels: every place sees every other one."""

    def __init__(self, channels: int, *, heads: int = 4):
        super().__init__()
        self.heads, self.scale = heads, (channels // heads) ** -0.5
        self.norm = nn.LayerNorm(channels)
        self.to_qkv = nn.Linear(channels, 3 * channels)
        self.to_out = _zeroed(nn.Linear(channels, channels))

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        batch, channels, height, width = x.shape
        pixels = x.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        heads = self.to_qkv(self.norm(pixels)).unflatten(2, (3, self.heads, channels // self.heads))
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind()
        # Written out: for a few dozen pixels torch's fused attention is slower on the CPU.
        h = (self.scale * q @ k.transpose(2, 3)).softmax(dim=3) @ v
        h = self.to_out(h.transpose(1, 2).reshape(batch, height * width, channels))
        return x + h.reshape(batch, height, width, channels).permute(0, 3, 1, 2)


class UNet(nn.Module):
    """A vector field on images, told the time and, if asked for, a label.

    Args:
        in_channels: channels of the image, and of the field.
        channels: channels of each resolution; each one after the first halves height and width.
        blocks: residual blocks at each resolution, on the way down and on the way up.
        labels: number of labels; the label `labels` itself means 'none given'. None: the network takes no label.
        dim_embedding: length of the embedding of time and label.
        attention: whether the lowest resolution attends to itself.
        dropout: probability of dropping a unit in each residual block.
    """

    def __init__(
        self,
        in_channels: int = 1,
        *,
        channels: Sequence[int] = (32, 64),
        blocks: int = 1,
        labels: int | None = None,
        dim_embedding: int = 64,
        attention: bool = True,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.in_channels, self.labels = in_channels, labels
        self.time = nn.Sequential(
            SinusoidalEmbedding(dim_embedding),
            nn.Linear(dim_embedding, dim_embedding),
            nn.SiLU(),
            nn.Linear(dim_embedding, dim_embedding),
        )
        self.label = None if labels is None else nn.Embedding(labels + 1, dim_embedding)

        def chain(*widths: int) -> nn.ModuleList:
            return nn.ModuleList([ResidualBlock(a, b, dim_embedding, dropout=dropout) for a, b in pairwise(widths)])

        *upper, lowest = channels
        self.conv_in = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        self.down = nn.ModuleList([chain(c, *[c] * blocks) for c in upper])
        self.halve = nn.ModuleList([nn.Conv2d(a, b, 2, stride=2) for a, b in pairwise(channels)])
        self.lowest_in = chain(lowest, *[lowest] * blocks)
        self.attention = Attention(lowest) if attention else nn.Identity()
        self.lowest_out = chain(lowest, *[lowest] * blocks)
        self.narrow = nn.ModuleList([nn.Conv2d(b, a, 1) for a, b in pairwise(channels)])
        self.up = nn.ModuleList([chain(2 * c, *[c] * blocks) for c in upper])
        self.norm_out = ChannelNorm(channels[0])
        self.conv_out = _zeroed(nn.Conv2d(channels[0], in_channels, 3, padding=1))
        self.to(memory_format=torch.channels_last)

    def forward(
        self,
        t: Float[Tensor, "*batch_or_scalar"],
        x: Float[Tensor, "batch channels height width"],
        y: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch channels height width"]:
        """The field at time `t`, () or (batch,), at the images `x`, given the labels `y` (None: none given)."""
        self._check(x)
        embedding = self._embedding(t, x, y)
        h, skips = self.conv_in(x), []
        for blocks, halve in zip(self.down, self.halve, strict=True):
            skips.append(_through(blocks, h, embedding))
            h = halve(skips[-1])
        h = self.attention(_through(self.lowest_in, h, embedding))
        h = _through(self.lowest_out, h, embedding)
        for blocks, narrow in zip(reversed(self.up), reversed(self.narrow), strict=True):
            h = _through(blocks, torch.cat([_double(narrow(h)), skips.pop()], dim=1), embedding)
        return self.conv_out(F.silu(self.norm_out(h)))

    def _embedding(self, t: Tensor, x: Tensor, y: Tensor | None) -> Tensor:
        embedding = self.time(batch_time("UNet", t, x))
        if self.label is None:
            if y is not None:
                raise ValueError("UNet: received labels; a network made without `labels` takes none")
        else:
            y = torch.full((len(x),), self.labels, device=x.device) if y is None else y
            embedding = embedding + self.label(y)
        return F.silu(embedding)

    def _check(self, x: Tensor) -> None:
        factor = 2 ** len(self.down)
        if x.ndim != 4 or x.shape[1] != self.in_channels or x.shape[2] % factor or x.shape[3] % factor:
            raise ValueError(
                f"UNet: received x of shape {tuple(x.shape)}; it must be (batch, {self.in_channels}, height, "
                f"width) with height and width multiples of {factor}"
            )


def _through(blocks: nn.ModuleList, h: Tensor, embedding: Tensor) -> Tensor:
    for block in blocks:
        h = block(h, embedding)
    return h


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def _zeroed(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
