r"""A small U-Net: a vector field on images, v(t, x) or v(t, x, y).

    h_0 = conv(x);  down: h_{i+1} = halve(block_i(h_i));  middle;  up: h_i' = block_i'([double(h_{i+1}'), h_i])

Each block is told the time and the label y by a scale and a shift of its channels. The last convolution starts at
zero, so an untrained network is the zero field. Sources: Ronneberger et al. 2015; Dhariwal and Nichol 2021, section 3.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from companion.nn.embeddings import SinusoidalEmbedding, batch_time


class ResidualBlock(nn.Module):
    """x + conv(act(scale · norm(conv(act(norm(x)))) + shift)), scale and shift from the embedding.

    Args:
        channels_in: channels of the input.
        channels_out: channels of the output.
        dim_embedding: length of the embedding.
        groups: groups of the normalization; it divides both numbers of channels.
        dropout: probability of dropping a unit before the second convolution.
    """

    def __init__(
        self, channels_in: int, channels_out: int, dim_embedding: int, *, groups: int = 8, dropout: float = 0.0
    ):
        super().__init__()
        self.norm_in = nn.GroupNorm(groups, channels_in)
        self.conv_in = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.modulation = nn.Linear(dim_embedding, 2 * channels_out)
        self.norm_out = nn.GroupNorm(groups, channels_out, affine=False)
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

    def __init__(self, channels: int, *, heads: int = 4, groups: int = 8):
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(groups, channels)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.to_out = _zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        batch, channels, height, width = x.shape
        heads = self.to_qkv(self.norm(x)).reshape(batch, 3 * self.heads, channels // self.heads, height * width)
        q, k, v = heads.transpose(2, 3).chunk(3, dim=1)
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.to_out(h.transpose(2, 3).reshape(batch, channels, height, width))


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
        self.time = SinusoidalEmbedding(dim_embedding)
        self.label = None if labels is None else nn.Embedding(labels + 1, dim_embedding)
        self.embed = nn.Sequential(nn.Linear(dim_embedding, dim_embedding), nn.SiLU())

        def block(a: int, b: int) -> ResidualBlock:
            return ResidualBlock(a, b, dim_embedding, dropout=dropout)

        self.conv_in = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        width = channels[0]
        for c in channels:
            self.down.append(nn.ModuleList([block(width if i == 0 else c, c) for i in range(blocks)]))
            width = c
        self.middle = block(width, width)
        self.attention = Attention(width) if attention else nn.Identity()
        for c in reversed(channels):
            self.up.append(nn.ModuleList([block((width if i == 0 else c) + c, c) for i in range(blocks)]))
            width = c
        self.norm_out = nn.GroupNorm(8, width)
        self.conv_out = _zeroed(nn.Conv2d(width, in_channels, 3, padding=1))

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
        for level, blocks in enumerate(self.down):
            h = F.avg_pool2d(h, 2) if level else h
            for block in blocks:
                h = block(h, embedding)
                skips.append(h)
        h = self.attention(self.middle(h, embedding))
        for level, blocks in enumerate(self.up):
            h = F.interpolate(h, scale_factor=2.0, mode="nearest") if level else h
            for block in blocks:
                h = block(torch.cat([h, skips.pop()], dim=1), embedding)
        return self.conv_out(F.silu(self.norm_out(h)))

    def _embedding(self, t: Tensor, x: Tensor, y: Tensor | None) -> Tensor:
        embedding = self.time(batch_time("UNet", t, x))
        if self.label is None:
            if y is not None:
                raise ValueError("UNet: received labels; a network made without `labels` takes none")
        else:
            y = torch.full((len(x),), self.labels, device=x.device) if y is None else y
            embedding = embedding + self.label(y)
        return self.embed(embedding)

    def _check(self, x: Tensor) -> None:
        factor = 2 ** (len(self.down) - 1)
        if x.ndim != 4 or x.shape[1] != self.in_channels or x.shape[2] % factor or x.shape[3] % factor:
            raise ValueError(
                f"UNet: received x of shape {tuple(x.shape)}; it must be (batch, {self.in_channels}, height, "
                f"width) with height and width multiples of {factor}"
            )


def _zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
