"""Devices and explicit randomness."""

import pytest
import torch

from companion.device import default_device, generator, rand, randn, randn_like, seeded


def test_the_environment_chooses_the_device(monkeypatch):
    monkeypatch.setenv("COMPANION_DEVICE", "cpu")
    assert default_device() == torch.device("cpu")


@pytest.mark.parametrize("name", ["abacus", "cuda:99"])
def test_a_device_that_is_not_there_is_an_error(monkeypatch, name):
    monkeypatch.setenv("COMPANION_DEVICE", name)
    with pytest.raises(ValueError, match=rf"default_device: received COMPANION_DEVICE='{name}'.*such as cpu or cuda"):
        default_device()


def test_without_a_wish_it_takes_what_is_there(monkeypatch):
    monkeypatch.delenv("COMPANION_DEVICE", raising=False)
    assert default_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("draw", [randn, rand])
def test_the_same_seed_draws_the_same_numbers_wherever_they_go(draw):
    here = draw(3, 2, generator=generator(5))
    there = draw(3, 2, generator=generator(5), device=default_device())
    assert torch.equal(here, there.cpu())
    assert not torch.equal(here, draw(3, 2, generator=generator(6)))


def test_numbers_have_the_type_that_was_asked_for():
    assert randn(2, generator=generator(0), dtype=torch.float64).dtype == torch.float64
    assert rand(generator=generator(0)).shape == ()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_like_a_tensor_are_those_of_its_shape_type_and_place(dtype):
    x = torch.zeros(3, 2, dtype=dtype, device=default_device())
    like = randn_like(x, generator=generator(5))
    assert (like.shape, like.dtype, like.device) == (x.shape, x.dtype, x.device)
    assert torch.equal(like.cpu(), randn(3, 2, generator=generator(5), dtype=dtype))


def test_a_seeded_block_leaves_the_randomness_of_torch_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with seeded(generator(0)):
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with seeded(generator(0)):
        assert torch.equal(torch.rand(3), inside)


def test_a_generator_that_is_not_on_the_cpu_is_refused():
    class Elsewhere(torch.Generator):
        device = torch.device("cuda")

    with pytest.raises(ValueError, match="received a generator on cuda; draw on the CPU, then move"):
        randn(2, generator=Elsewhere())
