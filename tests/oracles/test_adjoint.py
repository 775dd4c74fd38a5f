"""Adjoint gradients against torchdiffeq's odeint_adjoint on the same field."""

import pytest
import torch
from torch import nn
from torchdiffeq import odeint_adjoint

from companion.device import generator, randn, seeded
from companion.nn import VelocityMLP
from companion.numerics.adjoint import integrate_adjoint
from companion.numerics.ode import DormandPrince, RungeKutta4

F64 = torch.float64
X = randn(30, 2, generator=generator(0), dtype=F64)


class Field(nn.Module):
    """torchdiffeq wants a module."""

    def __init__(self):
        super().__init__()
        with seeded(generator(1)):
            self.net = VelocityMLP(2, width=16, depth=2, activation=nn.Tanh).double()

    def forward(self, t, x):
        return self.net(t, x)


def gradients(end, x, field):
    loss = (end.sin().sum(1) * end[:, 0]).mean()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, [x, *field.parameters()])])


@pytest.mark.verifies("eq-adjoint")
@pytest.mark.parametrize(
    ("solver", "method", "options", "tolerance"),
    [
        (RungeKutta4(40), "rk4", {"options": {"step_size": 1 / 40}, "adjoint_options": {"step_size": 1 / 40}}, 1e-6),
        (DormandPrince(rtol=1e-9, atol=1e-9), "dopri5", {"rtol": 1e-9, "atol": 1e-9}, 1e-7),
    ],
    ids=["fixed", "adaptive"],
)
def test_adjoint_gradients_are_those_of_torchdiffeq(solver, method, options, tolerance):
    """torchdiffeq solves the adjoint equation backwards with its own solvers (its rk4 is the 3/8 rule)."""
    field = Field()
    x = X.clone().requires_grad_()
    theirs = gradients(
        odeint_adjoint(field, x, torch.tensor([0.0, 1.0], dtype=F64), method=method, **options)[-1], x, field
    )
    ours = gradients(integrate_adjoint(field, x, solver, parameters=field.parameters()), x, field)
    assert (ours - theirs).norm() < tolerance * theirs.norm()
