"""Networks: shapes, times, labels, and what they are before any training."""

import math

import pytest
import torch
from torch import nn

from companion.device import default_device, generator, rand, randn, seeded
from companion.nn import MLP, FourierFeatures, ResidualBlock, SinusoidalEmbedding, UNet, VelocityMLP
from companion.nn.unet import Attention, ChannelNorm


def unsettled(model: nn.Module) -> nn.Module:
    """The model with random weights everywhere: layers that start at zero would hide what stands before them."""
    source = generator(11)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(0.2 * randn(*weight.shape, generator=source))
    return model.eval()


def test_an_mlp_is_matrices_with_an_activation_between_them():
    model, x = MLP(2, 3, width=5, depth=2, activation=nn.ReLU), randn(7, 2, generator=generator(0))
    first, second, last = (layer for layer in model if isinstance(layer, nn.Linear))
    h = (x @ first.weight.T + first.bias).clamp(min=0)
    h = (h @ second.weight.T + second.bias).clamp(min=0)
    torch.testing.assert_close(model(x), h @ last.weight.T + last.bias)


def test_an_mlp_without_hidden_layers_is_linear():
    model = MLP(2, 2, depth=0)
    assert [type(layer) for layer in model] == [nn.Linear]


def test_the_default_velocity_network_has_the_size_of_the_tutorials():
    """64×3 on (x, t) in the plane: 3·64 + 64 + 2(64² + 64) + 64·2 + 2 weights."""
    assert sum(w.numel() for w in VelocityMLP(2).parameters()) == 3 * 64 + 64 + 2 * (64 * 64 + 64) + 64 * 2 + 2


MODELS = {
    "mlp": (lambda: VelocityMLP(2), (2,)),
    "mlp with embedding": (lambda: VelocityMLP(2, embedding=SinusoidalEmbedding(8), dim_embedding=8), (2,)),
    "unet": (lambda: UNet(channels=(8, 16)), (1, 8, 8)),
    "unet on color": (lambda: UNet(3, channels=(8, 16, 16), blocks=2), (3, 16, 12)),
}
every_model = pytest.mark.parametrize(("make", "shape"), MODELS.values(), ids=MODELS)


@every_model
def test_a_field_has_the_shape_of_its_points(make, shape):
    x = randn(3, *shape, generator=generator(0))
    assert make()(torch.tensor(0.5), x).shape == x.shape


@every_model
def test_one_time_for_all_and_a_time_for_each_agree(make, shape):
    model, x = unsettled(make()), randn(4, *shape, generator=generator(0))
    each = torch.tensor([0.1, 0.4, 0.4, 0.9])
    together = model(each, x)
    for row, t in enumerate(each):
        torch.testing.assert_close(model(t, x[row : row + 1])[0], together[row], rtol=1e-4, atol=1e-5)


@every_model
def test_the_time_matters(make, shape):
    model, x = unsettled(make()), randn(2, *shape, generator=generator(0))
    assert not torch.allclose(model(torch.tensor(0.2), x), model(torch.tensor(0.21), x), atol=1e-6)


@every_model
def test_rows_do_not_see_each_other(make, shape):
    model, x = unsettled(make()), randn(3, *shape, generator=generator(0))
    t = torch.tensor(0.5)
    torch.testing.assert_close(model(t, x)[:1], model(t, x[:1]), rtol=1e-4, atol=1e-5)


@every_model
def test_it_computes_in_double_precision_and_on_the_device(make, shape):
    device = default_device()
    model = make().to(device, torch.float64)
    x = randn(2, *shape, generator=generator(0), device=device, dtype=torch.float64)
    assert model(torch.tensor(0.5, device=device, dtype=torch.float64), x).dtype == torch.float64


@every_model
def test_all_weights_get_a_gradient(make, shape):
    model = unsettled(make())
    model(torch.rand(2), randn(2, *shape, generator=generator(0))).square().sum().backward()
    assert all(w.grad is not None and w.grad.abs().sum() > 0 for w in model.parameters())


def test_an_untrained_unet_is_the_zero_field():
    model = UNet(channels=(8, 16), labels=10)
    assert model(torch.tensor(0.3), randn(2, 1, 8, 8, generator=generator(0))).abs().max() == 0


def test_the_last_label_means_none():
    model, x = unsettled(UNet(channels=(8, 16), labels=10)), randn(3, 1, 8, 8, generator=generator(0))
    t = torch.tensor(0.5)
    none = model(t, x, torch.full((3,), 10))
    assert torch.equal(model(t, x), none)
    assert not torch.allclose(model(t, x, torch.tensor([0, 1, 2])), none)


def test_the_last_label_means_none_to_an_mlp_too():
    """Labels differ, 'none' is what no label gives, and only the labels that were told get a gradient."""
    torch.manual_seed(0)
    model, x = VelocityMLP(2, labels=3), randn(4, 2, generator=generator(0))
    t = torch.tensor(0.5)
    assert torch.equal(model(t, x), model(t, x, torch.full((4,), 3)))
    same = x[:1].expand(4, 2)
    assert torch.pdist(model(t, same, torch.arange(4))).min() > 1e-3
    torch.testing.assert_close(model(t, same, torch.arange(4))[2:3], model(t, x[:1], torch.tensor([2])))
    model(t, x, torch.tensor([0, 1, 0, 1])).sum().backward()
    assert model.label.weight.grad.abs().sum(1).gt(0).tolist() == [True, True, False, False]


def test_an_mlp_without_labels_has_the_weights_it_always_had():
    """The same layers, filled by the same draws, as an MLP on the point and the time."""
    torch.manual_seed(0)
    model = VelocityMLP(2, width=8)
    torch.manual_seed(0)
    plain = MLP(3, 2, width=8)
    assert list(model.state_dict()) == [f"net.{name}" for name in plain.state_dict()]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


def test_weights_follow_the_generator():
    def make(seed):
        with seeded(generator(seed)):
            return VelocityMLP(2).net[0].weight

    assert torch.equal(make(0), make(0))
    assert not torch.equal(make(0), make(1))


def test_a_residual_block_is_the_identity_before_training():
    block, x = ResidualBlock(8, 8, 4), randn(2, 8, 4, 4, generator=generator(0))
    assert torch.equal(block(x, randn(2, 4, generator=generator(1))), x)


def test_each_pixel_is_normalized_by_itself():
    """Mean 0 and variance 1 over the channels of every pixel, whatever its neighbors hold."""
    x = 3 + 5 * randn(2, 16, 4, 6, generator=generator(0))
    h = ChannelNorm(16, affine=False)(x)
    torch.testing.assert_close(h.mean(dim=1), torch.zeros(2, 4, 6), rtol=0, atol=1e-5)
    torch.testing.assert_close(h.var(dim=1, correction=0), torch.ones(2, 4, 6), rtol=1e-3, atol=0)
    x[0, :, 1, 1] *= 7
    torch.testing.assert_close(ChannelNorm(16, affine=False)(x)[0, :, 2:], h[0, :, 2:])


def test_attention_is_that_of_torch():
    """`nn.MultiheadAttention` with the same weights on the normalized pixels."""
    attention, x = unsettled(Attention(8, heads=2)), randn(3, 8, 4, 2, generator=generator(0))
    oracle = nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        oracle.in_proj_weight.copy_(attention.to_qkv.weight)
        oracle.in_proj_bias.copy_(attention.to_qkv.bias)
        oracle.out_proj.load_state_dict(attention.to_out.state_dict())
    pixels = attention.norm(x.flatten(2).transpose(1, 2))
    expected = x + oracle(pixels, pixels, pixels)[0].transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(attention(x), expected, rtol=1e-4, atol=1e-5)


def test_images_stay_channels_last_inside_the_unet():
    """Else each convolution would copy its input to another order and back."""
    model, orders = UNet(channels=(8, 16)), []
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(
                lambda _, __, out: orders.append(out.is_contiguous(memory_format=torch.channels_last))
            )
    model(torch.tensor(0.5), randn(2, 1, 8, 8, generator=generator(0)))
    assert len(orders) == 13
    assert all(orders)


def test_the_sinusoidal_embedding_tells_all_times_apart():
    """Frequencies from 0.1 to 16 periods: no two of 201 times coincide, and the ends are far apart."""
    e = SinusoidalEmbedding(32)(torch.linspace(0, 1, 201))
    distance = torch.cdist(e, e)
    assert distance[0, -1] > 1
    assert (e[:, 0].diff() > 0).all()  # the lowest frequency: its sine only rises
    assert (distance + 10 * torch.eye(201)).min() > 0.1
    torch.testing.assert_close(e.square().sum(dim=1), torch.full((201,), 16.0))


def test_fourier_features_have_a_kernel_that_depends_on_the_difference():
    """Tancik et al. 2020: ⟨e(x), e(y)⟩ = Σ cos 2πb·(x − y), which tends to a Gaussian kernel exp(−2π²s²|x − y|²)."""
    features = FourierFeatures(2, 20_000, scale=0.5, generator=generator(0))
    x, y = rand(6, 2, generator=generator(1)), rand(6, 2, generator=generator(2))
    kernel = (features(x) * features(y)).sum(dim=1) / 10_000
    expected = torch.exp(-2 * math.pi**2 * 0.25 * (x - y).square().sum(dim=1))
    assert ((kernel - expected).abs() < 5 / math.sqrt(2 * 10_000)).all()  # five standard errors: false alarms 1e-5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: VelocityMLP(2)(torch.tensor(0.5), torch.zeros(4, 3)), r"received x of shape \(4, 3\).*\(batch, 2\)"),
        (lambda: VelocityMLP(2)(torch.zeros(3), torch.zeros(4, 2)), r"received t of shape \(3,\)"),
        (lambda: VelocityMLP(2)(torch.tensor(0.5), torch.zeros(2, 2), torch.zeros(2, dtype=torch.long)), "takes none"),
        (lambda: UNet()(torch.tensor(0.5), torch.zeros(1, 3, 8, 8)), r"it must be \(batch, 1, height, width\)"),
        (lambda: UNet()(torch.tensor(0.5), torch.zeros(1, 1, 7, 8)), "multiples of 2"),
        (lambda: UNet()(torch.tensor(0.5), torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.long)), "takes none"),
        (lambda: SinusoidalEmbedding(7), "received dim = 7.*even"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
