"""The bookkeeping of the comparison: what is counted, rounded, written and kept. No family is trained here for long."""

import json
import math

import pytest
import torch
from torch import nn

from benchmarks import compare, judging
from benchmarks.families import (
    FAMILIES,
    PIXELS,
    Task,
    Trained,
    nats_of_a_chain,
    nats_of_a_flow,
    nats_of_levels,
)
from companion.device import generator, randn
from companion.numerics.schedules import cosine_schedule, noise_from_data
from course.chapters import SLUG
from course.site import families as site


@pytest.fixture(scope="module")
def plane():
    return compare.Plane()


class Twice(nn.Module):
    """A network that a sampler calls twice."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x):
        return self.linear(x)


def cloud(nats=None, exact=False):
    """A family that has learned a Gaussian as wide as the board, and evaluates its network twice a sample."""

    def make(task):
        network = Twice()

        def sample(n, source):
            x = 1.3 * randn(n, 2, generator=source)
            network(torch.cat([x, x]))
            return x

        return Trained(network, network, sample, nats, exact)

    return make


def test_evaluations_weights_and_likelihood_are_those_of_the_family(plane):
    """A sampler that shows each row to a network of six weights twice; a known −log p at every point."""
    found = compare.measured(cloud(lambda x, source: torch.full((len(x),), 2.5), exact=True), plane, 1.0)
    assert (found["scores"]["evaluations"], found["scores"]["weights"]) == (2, 6)
    assert (found["scores"]["nats"], found["scores"]["likelihood"]) == (2.5, "exact")
    none = compare.measured(cloud(), plane, 1.0)["scores"]
    assert (none["nats"], none["likelihood"]) == (None, "none")


def test_a_cloud_is_told_from_a_board_and_fresh_data_are_not(plane):
    """A Gaussian puts about half of its mass off the board; the density's own points none, and nothing is copied."""
    wrong, right = compare.measured(cloud(), plane, 1.0)["scores"], compare.reference(plane.fresh, plane)["scores"]
    assert wrong["outside"] > 0.4
    assert right["outside"] == 0
    assert wrong["energy"] > 3 * right["energy"]
    assert right["copying"] == pytest.approx(1, abs=0.03)
    assert compare.reference([plane.train], plane)["scores"]["copying"] == 0


def test_the_entropy_of_the_board_is_what_its_own_density_scores(plane):
    """log 8: the mean of −log p over points of the density itself, which is flat on eight squares of area 1."""
    assert -compare.BOARD.log_prob(plane.test).mean().item() == pytest.approx(compare.ENTROPY, abs=1e-6)


def test_labels_in_the_plane_are_the_squares(plane):
    """Eight labels, all points of one label in one square of side 1, none in two."""
    task = plane.task(1.0)
    assert task.count == 8
    squares = {(*x.floor().int().tolist(), y) for x, y in zip(task.train, task.labels.tolist(), strict=True)}
    assert len(squares) == 8


def test_the_drawn_board_is_the_density(plane):
    """The corners in the file are those of the squares that hold points."""
    corners = json.loads(compare.text_of([]))["about"]["board"]
    assert {tuple(corner) for corner in corners} == {tuple(x) for x in plane.test.floor().int().tolist()}


def test_a_density_of_pixels_becomes_a_price_of_gray_levels():
    """Uniform on [−17/16, 17/16]^64, where all noisy digits lie: each of 17 levels costs log 17, 4.09 bits a pixel."""
    uniform = nats_of_levels(lambda x, source: torch.full((len(x),), PIXELS * math.log(17 / 8)))
    nats = uniform(torch.zeros(3, 1, 8, 8), generator(0))
    torch.testing.assert_close(nats, torch.full((3,), PIXELS * math.log(17)))


def random_levels(n):
    """Pictures whose pixels take each of the 17 levels equally often, independently: −log P is 64 log 17 for each."""
    return torch.randint(17, (n, 1, 8, 8), generator=generator(3)) / 8 - 1


def mean_level(noisy, signal, sigma):
    """E[k | signal · k + sigma · ε] of such pictures, pixel by pixel."""
    levels = torch.linspace(-1, 1, 17)
    return (-(noisy[..., None] - signal * levels).square() / (2 * sigma**2)).softmax(dim=-1) @ levels


@pytest.mark.parametrize(("tau", "error"), [(0.9, 0.02), (0.96, 0.3)])
def test_the_bound_of_a_flow_is_the_price_itself_where_its_field_is_exact(tau, error):
    """By Bayes log p_τ + log P(k | x_τ) − log q = log P(k) at each x_τ: 64 log 17 nats, up to the solver."""

    def velocity(t, x):
        return (mean_level(x, t, 1 - t) - x) / (1 - t)

    x, price = random_levels(20), PIXELS * math.log(17)
    torch.testing.assert_close(
        nats_of_a_flow(velocity, x, generator(0), tau=tau), torch.full((20,), price), rtol=0, atol=error
    )
    assert nats_of_a_flow(lambda t, x: 0.5 * velocity(t, x), x, generator(0), tau=tau).mean() > price + 3


def test_the_bound_of_a_chain_is_the_price_where_its_predictions_are_exact():
    """1,000 small steps leave no gap that can be seen: the mean of 50 images has a standard error of 0.9 nats."""
    schedule, x, price = cosine_schedule(1_000), random_levels(50), PIXELS * math.log(17)

    def noise(time, x):
        t = schedule.step(time)
        signal, sigma = (part(t, x)[..., None] for part in (schedule.signal, schedule.noise))
        return noise_from_data(schedule, t, x, mean_level(x, signal, sigma))

    assert nats_of_a_chain(noise, schedule, x, generator(0)).mean() == pytest.approx(price, abs=3)
    assert nats_of_a_chain(lambda time, x: 0.7 * noise(time, x), schedule, x, generator(0)).mean() > price + 6


def test_the_noise_that_fills_the_gaps_stays_within_a_gray_level():
    """Every noisy image is rounded back to the image that it came from; the noise reaches both edges of the level."""
    seen = []
    image = torch.linspace(-1, 1, 17)[:, None, None, None].expand(17, 1, 8, 8)
    nats_of_levels(lambda x, source: seen.append(x) or x.flatten(1).sum(1))(image, generator(0))
    assert torch.equal(compare.levels(seen[0]), compare.levels(image))
    assert (seen[0] - image).abs().max() == pytest.approx(1 / 16, abs=1e-3)


def test_digits_are_written_as_gray_levels_and_read_back():
    """A letter a pixel; what lies beyond black and white is cut."""
    image = torch.tensor([-1.0, -0.99, -0.875, 0.0, 0.9, 1.0, -3.0, 3.0]).repeat(8).reshape(1, 1, 8, 8)
    assert compare.Digits.picture(None, image)["images"] == ["0018fg0g" * 8]


def row(key, name="A", reference=False):
    return {"key": key, "name": name, "reference": reference}


def test_a_family_that_is_run_again_replaces_its_row_alone():
    keys = list(FAMILIES)
    old = [row(keys[1]), row(compare.FRESH, reference=True), row("forgotten"), row(keys[0])]
    rows = compare.merged(old, [row(keys[1], "B")])
    assert [(r["key"], r["name"]) for r in rows] == [(keys[0], "A"), (keys[1], "B"), (compare.FRESH, "A")]


def test_the_file_is_whole_or_not_at_all(tmp_path, monkeypatch):
    results = tmp_path / "families.json"
    compare.write(results, [row(next(iter(FAMILIES)))])
    before = results.read_text()
    monkeypatch.setattr(compare, "LARGEST", 10)
    with pytest.raises(ValueError, match="bytes of results; rule: at most 10"):
        compare.write(results, [row(compare.FRESH)])
    assert results.read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["families.json"]


def test_lists_of_numbers_stand_on_one_line():
    text = compare.text_of([{"key": "a", "points": [0.5, -1.25, 2.0], "images": ["00", "11"]}])
    assert '"points": [0.5,-1.25,2.0]' in text
    assert json.loads(text)["rows"][0]["points"] == [0.5, -1.25, 2.0]


def test_an_unknown_family_is_refused_with_the_known_ones(capsys, tmp_path):
    assert compare.main(["--only", "gan", "--results", str(tmp_path / "f.json")]) == 2
    assert f"received gan; rule: the families are {', '.join(FAMILIES)}" in capsys.readouterr().err
    assert compare.main(["--seconds", "-1", "--results", str(tmp_path / "f.json")]) == 2
    assert list(tmp_path.iterdir()) == []


def test_one_family_is_measured_and_fits_the_page(tmp_path, monkeypatch):
    """A stand-in family goes through the command, and the page takes what was written; noise fails."""

    class Cloud:
        key, name, chapter, about = "vae", "A cloud", None, "Never trained."

        def plane(self, task):
            return cloud(lambda x, source: x.square().sum(1))(task)

        def digits(self, task):
            network = nn.Linear(1, 1)
            return Trained(network, network, lambda n, source: randn(n, 1, 8, 8, generator=source))

    class Pixels(nn.Module):
        """A judge without training, whose features are the pixels."""

        def features(self, images):
            return images.flatten(1)

    monkeypatch.setattr(compare, "FAMILIES", {"vae": Cloud()})
    monkeypatch.setattr(judging, "DigitJudge", Pixels)
    (tmp_path / "book").mkdir()
    (tmp_path / "pyproject.toml").write_text("")
    assert compare.main(["--seconds", "1", "--results", str(tmp_path / site.FILE)]) == 0
    found = site.read(tmp_path)
    assert [entry["key"] for entry in found["rows"]] == ["vae", compare.TRAINING, compare.FRESH]
    digits = found["rows"][0]["digits"]["scores"]
    assert digits["precision"] < 0.1
    assert digits["frechet"] > 20
    assert found["rows"][1]["digits"]["scores"]["frechet"] == 1


def test_samples_that_are_not_finite_are_refused(plane):
    network = nn.Linear(1, 1)
    broken = Trained(network, network, lambda n, source: torch.full((n, 2), math.nan))
    with pytest.raises(ValueError, match="NaN or infinity; rule: every number of a sample is finite"):
        compare.measured(lambda task: broken, plane, 1.0)


@pytest.mark.parametrize("key", FAMILIES)
def test_every_family_says_what_it_is(key):
    family = FAMILIES[key]
    assert family.key == key
    assert SLUG.fullmatch(family.chapter)
    assert family.name
    assert family.about.endswith(".")


@pytest.mark.parametrize("key", FAMILIES)
def test_every_family_learns_in_the_plane_and_can_be_sampled(key, plane):
    """A fifth of a second of training: shapes and finiteness, and a likelihood for each point where there is one."""
    trained = FAMILIES[key].plane(Task(plane.train, plane.task(1.0).labels, seconds=0.2))
    assert trained.sample(7, generator(0)).shape == (7, 2)
    assert trained.nats is None or trained.nats(plane.test[:5], generator(0)).isfinite().all()
    weights = sum(weight.numel() for weight in trained.model.parameters())
    assert 8_000 < weights < 10_000, "in the plane all networks are about equally large"
