"""Where tensors live and where randomness comes from.

All random numbers are drawn on the CPU by an explicit generator and then moved, so that a chapter draws the same
numbers on every machine, with or without a GPU.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def default_device() -> torch.device:
    """The device to compute on: `$COMPANION_DEVICE` if set, else CUDA if there is one, else the CPU.

    Raises:
        ValueError: `$COMPANION_DEVICE` names no device, or one that cannot hold a tensor on this machine.
    """
    name = os.environ.get("COMPANION_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        rule = "set COMPANION_DEVICE to a device that this machine has, such as cpu or cuda"
        raise ValueError(f"default_device: received COMPANION_DEVICE={name!r} ({reason}); {rule}") from error
    return device


def generator(seed: int) -> torch.Generator:
    """A new generator on the CPU that starts from `seed`: the same seed gives the same numbers on every device."""
    return torch.Generator("cpu").manual_seed(seed)


@contextmanager
def seeded(generator: torch.Generator) -> Iterator[None]:
    """What torch draws on the CPU inside the block without being asked, such as a network's first weights, follows
    `generator`; outside, torch's own randomness goes on as if nothing had happened.

        with seeded(generator(0)):
            model = VelocityMLP(2)
    """
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def randn(
    *shape: int,
    generator: torch.Generator,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Standard normal numbers of the given shape, drawn on the CPU, then moved to `device`."""
    return _draw(torch.randn, shape, generator, device, dtype)


def randn_like(x: Tensor, *, generator: torch.Generator) -> Tensor:
    """Standard normal numbers of the shape, the dtype and the device of `x`, drawn on the CPU."""
    return randn(*x.shape, generator=generator, device=x.device, dtype=x.dtype)


def rand(
    *shape: int,
    generator: torch.Generator,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Uniform numbers in [0, 1) of the given shape, drawn on the CPU, then moved to `device`."""
    return _draw(torch.rand, shape, generator, device, dtype)


def _draw(
    law: Callable[..., Tensor],
    shape: tuple[int, ...],
    generator: torch.Generator,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> Tensor:
    if generator.device.type != "cpu":
        raise ValueError(f"{law.__name__}: received a generator on {generator.device}; draw on the CPU, then move")
    numbers = law(shape, generator=generator, dtype=dtype)
    return numbers if device is None else numbers.to(device)
