"""Device and dtype follow the inputs, on every device that this machine has; the numbers are those of the CPU."""

import pytest
import torch

from companion.device import generator
from companion.numerics import autodiff, transport
from companion.numerics.ode import DormandPrince, Euler, RungeKutta4, integrate
from companion.numerics.paths import CondOT, LinearPath, VariancePreserving
from companion.numerics.sde import euler_maruyama

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def points(n=20, seed=0):
    return torch.randn(n, 2, generator=generator(seed))


def field(t, x):
    return torch.sin(x.flip(1)) + t


def convert(t, x, y):
    return VariancePreserving().velocity_from_score(t, x, CondOT().score_from_velocity(t, x, y))


TIME = torch.tensor(0.4)
CALLS = {
    "integrate": lambda x, y, to: [
        getattr(integrate(field, x, solver, t_eval=to(torch.tensor([0.3, 1.0]))), name)
        for solver in (Euler(5), RungeKutta4(5), DormandPrince())
        for name in ("x", "t", "final")
    ],
    "dense output": lambda x, y, to: [integrate(field, x, DormandPrince())(to(torch.tensor([0.1, 0.9])))],
    "euler_maruyama": lambda x, y, to: [
        (paths := euler_maruyama(field, lambda t: 1 + t, x, steps=5, generator=generator(3))).x,
        paths.t,
    ],
    "autodiff": lambda x, y, to: [
        autodiff.jacobian(lambda p: p.flip(0) ** 2, x),
        autodiff.divergence(field, to(TIME), x),
        autodiff.hutchinson_divergence(field, to(TIME), x, autodiff.rademacher(x.shape, generator(4), device=x.device)),
    ],
    "paths": lambda x, y, to: [
        convert(to(TIME), x, y),
        CondOT().sample(to(TIME).expand(len(x)), x, y),
        LinearPath(0.1).sample(to(TIME), x, y, x),
    ],
    "transport": lambda x, y, to: [
        transport.optimal_pairing(x, y),
        transport.exact_plan(x, y),
        transport.sinkhorn_plan(x, y, epsilon=1.0),
        transport.wasserstein(x, y),
        transport.sliced_wasserstein(x, y, projections=5, generator=generator(5)),
        *transport.sample_plan(transport.exact_plan(x, y), 10, generator=generator(6)),
        torch.tensor(transport.crossing_pairs(x, y)).to(x.device),
    ],
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_stay_on_the_device_and_in_the_dtype_of_the_inputs(call, device, dtype):
    def results(device):
        def to(tensor):
            return tensor.to(device, dtype)

        return CALLS[call](to(points()), to(points(seed=1) + 1), to)

    for there, here in zip(results(device), results("cpu"), strict=True):
        assert there.device.type == device
        assert there.dtype == (dtype if there.is_floating_point() else torch.int64)
        torch.testing.assert_close(there.cpu(), here, rtol=1e-3, atol=1e-4)
