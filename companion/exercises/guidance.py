"""The exercises of chapter 13, guidance: each with its right answer and the wrong ones that people give."""

from statistics import NormalDist

import torch
from torch.nn import functional as F

from companion.exercises.checking import Exercise


def _number(generator, low, high):
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64)


def _normals(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# ---------------------------------------------------------------------- guided-from-two (warm-up; E26)

guided_from_two = Exercise(
    inputs=lambda generator: (*_normals(generator, 2, 16, 2), _number(generator, 2.0, 4.0).item()),
    right=lambda free, conditional, w: (1 - w) * free + w * conditional,
    also_right=(
        lambda free, conditional, w: free + w * (conditional - free),
        lambda free, conditional, w: torch.lerp(free, conditional, w),
        lambda free, conditional, w: conditional + (w - 1) * (conditional - free),
    ),
    wrong={
        "guided and unguided are swapped: with w = 0 this returns the conditional velocity, and a large w pushes away "
        "from the label.": lambda free, conditional, w: (1 - w) * conditional + w * free,
        "this is the weight of Ho and Salimans, which counts from the conditional velocity: theirs is w − 1. Here "
        "w = 1 must give the conditional velocity.": lambda free, conditional, w: (1 + w) * conditional - w * free,
        "the weights 1 and w do not add up to 1: where the two velocities agree, guidance must change nothing.": (
            lambda free, conditional, w: free + w * conditional
        ),
        "you multiplied the conditional velocity by w: that is a longer arrow, not one that points further from the "
        "unguided one.": lambda free, conditional, w: w * conditional,
        "a weighted mean lies between the two velocities. With w > 1 guidance goes beyond the conditional one.": (
            lambda free, conditional, w: (free + w * conditional) / (1 + w)
        ),
        "the difference points from the conditional to the unguided velocity: you push away from the label.": (
            lambda free, conditional, w: free + w * (free - conditional)
        ),
        "you stopped at w = 1. Guidance extrapolates: w = 3 goes three times as far.": (
            lambda free, conditional, w: conditional
        ),
    },
)

# ---------------------------------------------------------------------- which-half-is-which (spot the bug; E26)

NULL = 4


def _conditional_model(t, x, y):
    """A field that depends on everything, row by row, so that each mix-up of rows shows."""
    angle = 0.7 * y[:, None] + t[:, None]
    return torch.sin(angle) * x + torch.cos(2 * angle)


def _rows(generator):
    x = _normals(generator, 12, 2)
    t = torch.rand(12, generator=generator, dtype=torch.float64)
    y = torch.randint(1, NULL, (12,), generator=generator)
    return _conditional_model, t, x, y, NULL, 3.0


def _alternating(a, b):
    return torch.stack([a, b], dim=1).flatten(0, 1)


def _halves(labels, *, t_twice=None, x_twice=None):
    """One batched call, with a planted change; the first half is taken for 'none given'."""

    def guided(model, t, x, y, null, w):
        times = torch.cat([t, t]) if t_twice is None else t_twice(t)
        points = torch.cat([x, x]) if x_twice is None else x_twice(x)
        free, conditional = model(times, points, labels(y, torch.full_like(y, null))).chunk(2)
        return (1 - w) * free + w * conditional

    return guided


def _in_turns(model, t, x, y, null, w):
    both = model(torch.cat([t, t]), torch.cat([x, x]), _alternating(torch.full_like(y, null), y))
    return (1 - w) * both[::2] + w * both[1::2]


def _two_calls(model, t, x, y, null, w):
    free = model(t, x, torch.full_like(y, null))
    return free + w * (model(t, x, y) - free)


def _label_first(model, t, x, y, null, w):
    conditional, free = model(t.repeat(2), x.repeat(2, 1), torch.cat([y, torch.full_like(y, null)])).chunk(2)
    return (1 - w) * free + w * conditional


which_half_is_which = Exercise(
    inputs=_rows,
    right=_halves(lambda y, none: torch.cat([none, y])),
    also_right=(_two_calls, _label_first),
    wrong={
        "the two halves are read in the wrong order: what you call free was told the label, and what you call "
        "conditional was told none. Turn the labels around, or the names, not both.": _halves(
            lambda y, none: torch.cat([y, none])
        ),
        "points are stacked one half after the other, labels are told in turns: the rows no longer belong together.": (
            _halves(_alternating)
        ),
        "labels are told and answers read in turns, but the points are stacked in halves: each answer is that of "
        "another point. Stack points, times and labels in the same way.": _in_turns,
        "each point stands twice in turns, but the labels come in halves. Stack both in the same way.": _halves(
            lambda y, none: torch.cat([none, y]), x_twice=lambda x: _alternating(x, x)
        ),
        "the times stand in turns, the points in halves: from the second row on the network is told another's time.": (
            _halves(lambda y, none: torch.cat([none, y]), t_twice=lambda t: _alternating(t, t))
        ),
        "label 0 is a real label. 'None given' is the label `null`, one more than the largest.": _halves(
            lambda y, none: torch.cat([torch.zeros_like(y), y])
        ),
        "both halves are told the label: their difference is zero and w has no effect.": (
            _halves(lambda y, none: torch.cat([y, y]))
        ),
        "neither half is told the label: this is the unguided field, whatever w is.": (
            _halves(lambda y, none: torch.cat([none, none]))
        ),
    },
)

# ---------------------------------------------------------------------- drop-each-alone (sampler, spot the bug)

BATCHES, BATCH, CLASSES, DROP = 2_000, 50, 10, 0.3


def _labels(generator):
    return torch.arange(BATCH) % CLASSES, DROP, CLASSES, generator


def _many_batches(answer, y, probability, null, generator):
    """All batches, whether the caller's labels outlive them, and whether one generator gives the same coins twice."""
    state, given = generator.get_state(), y.clone()
    first = answer(given, probability, null, generator)
    if not isinstance(first, torch.Tensor) or first.shape != y.shape:
        return first
    again = answer(y.clone(), probability, null, torch.Generator().set_state(state))
    told = torch.stack([first, *(answer(y.clone(), probability, null, generator) for _ in range(BATCHES - 1))])
    return told, torch.equal(given, y), torch.equal(first, again)


def _counts(output, y, probability, null, generator):
    """What is random about dropped labels: how many, how evenly over the batches and the rows, and what the rest is."""
    if not isinstance(output, tuple):
        return output
    told, unharmed, repeatable = output
    dropped = (told == null).double()
    return {
        "the number of dropped labels in a batch": dropped.sum(1).mean(),
        "the spread of this number from batch to batch": dropped.sum(1).std(),
        "the number of dropped labels in the first half of a batch": dropped[:, : BATCH // 2].sum(1).mean(),
        "the number of labels 0 in a batch": (told == 0).double().sum(1).mean(),
        "the share of labels that are dropped or unchanged": ((told == y) | (told == null)).double().mean(),
        "the caller's labels are left as they were": unharmed,
        "the same generator gives the same coins": repeatable,
    }


def _drop(where, instead=None):
    def drop(y, probability, null, generator):
        coins = where(y, probability, generator)
        other = torch.full_like(y, null) if instead is None else instead(y, generator)
        return torch.where(coins, other, y)

    return drop


def _coins(shape, p, generator):
    return torch.rand(shape, generator=generator) < p


def _drop_by_keeping(y, probability, null, generator):
    keep = torch.empty(len(y)).bernoulli_(1 - probability, generator=generator)
    return torch.where(keep == 1, y, null)


def _drop_exactly(y, p, generator):
    coins = torch.zeros_like(y, dtype=torch.bool)
    coins[torch.randperm(len(y), generator=generator)[: round(p * len(y))]] = True
    return coins


def _drop_in_place(y, probability, null, generator):
    keep = torch.empty(len(y)).bernoulli_(1 - probability, generator=generator)
    y[keep == 0] = null
    return y


drop_each_alone = Exercise(
    inputs=_labels,
    apply=_many_batches,
    right=_drop(lambda y, p, g: _coins(y.shape, p, g)),
    also_right=(_drop_by_keeping, lambda y, p, null, g: y.masked_fill(_coins(y.shape, p, g), null)),
    wrong={
        "one coin decides for the whole batch. The share is right on average, but each step then trains one of the two "
        "fields only. Each example needs its own coin.": _drop(lambda y, p, g: _coins((), p, g).expand(len(y))),
        "you keep a label with the probability η with which you should drop it.": (
            _drop(lambda y, p, g: ~_coins(y.shape, p, g))
        ),
        "a dropped label becomes 0, which is a real label: the network learns a mixture of 'zero' and 'anything'. "
        "Write `null`.": _drop(lambda y, p, g: _coins(y.shape, p, g), lambda y, g: torch.zeros_like(y)),
        "a dropped label becomes another label: that teaches wrong labels. Write `null`.": _drop(
            lambda y, p, g: _coins(y.shape, p, g), lambda y, g: torch.randint(CLASSES, y.shape, generator=g)
        ),
        "the number of dropped labels is the same in every batch: you shuffle the rows and drop a fixed share. Then "
        "one row's fate depends on the others'. Each example needs its own coin.": _drop(_drop_exactly),
        "you write into the labels that you were given: the next pass over the data finds them dropped already. "
        "Return new labels.": _drop_in_place,
        "the coins do not come from `generator`: nobody can repeat the run. Pass it on.": _drop(
            lambda y, p, g: torch.rand(y.shape) < p
        ),
        "all examples of one label share a coin. Each example needs its own.": _drop(
            lambda y, p, g: _coins((CLASSES,), p, g)[y]
        ),
        "the first rows of each batch are always the dropped ones: the rest never teaches the unguided field, unless "
        "somebody shuffles.": _drop(lambda y, p, g: torch.arange(len(y)) < p * len(y)),
        "no label is dropped: what the network answers to `null` is never trained.": (
            _drop(lambda y, p, g: torch.zeros_like(y, dtype=torch.bool))
        ),
    },
    statistic=_counts,
    atol=1e-9,
    rtol=0.1,  # 4.5 standard errors of a difference of spreads, the widest of the five
    false_alarm=1e-5,
)

# ---------------------------------------------------------------------- what-the-classifier-sees (spot the bug; E28)


def _noisy_classifier(t, x):
    """Scores of three labels: linear in the point, surer at late times."""
    directions = torch.tensor([[1.0, 0.0], [-0.5, 0.8], [-0.5, -0.8]], dtype=x.dtype)
    return (1 + 3 * t[:, None]) * (x @ directions.T)


def _classified(generator):
    x_1, eps = _normals(generator, 2, 16, 2)
    y = torch.randint(3, (16,), generator=generator)
    return _noisy_classifier, 2 * x_1, y, torch.rand(16, generator=generator, dtype=torch.float64), eps


def _with_a_hint(answer, *inputs):
    """Run the answer; where torch stumbles over two shapes, say which axis is missing."""
    try:
        return answer(*inputs) if callable(answer) else answer
    except RuntimeError as error:
        if "must match the size of tensor" not in str(error):
            raise
        raise ValueError(
            "two shapes that do not fit. t has the shape (batch,) and x_1 (batch, dim): to multiply them, give t a "
            "last axis, t[:, None]"
        ) from error


def _classifier_loss(seen, *, told=None, score=None):
    def loss(classifier, x_1, y, t, eps):
        scores = classifier(t if told is None else told(t), seen(x_1, t[:, None], eps))
        return F.cross_entropy(scores, y, reduction="none") if score is None else score(scores, y)

    return loss


def _mixed(x_1, t, eps):
    return t * x_1 + (1 - t) * eps


def _of_label(values, y):
    return values.gather(1, y[:, None])[:, 0]


what_the_classifier_sees = Exercise(
    inputs=_classified,
    apply=_with_a_hint,
    right=_classifier_loss(_mixed),
    also_right=(
        _classifier_loss(_mixed, score=lambda s, y: s.logsumexp(1) - _of_label(s, y)),
        lambda c, x_1, y, t, eps: -_of_label(c(t, eps.lerp(x_1, t[:, None])).softmax(1), y).log(),
    ),
    wrong={
        "the classifier still sees clean data. When it guides, it is asked at the noisy x_t: show it x_t.": (
            _classifier_loss(lambda x_1, t, eps: x_1)
        ),
        "the points are noisy, but the classifier is told that they are clean (t = 1): it must know how much to "
        "trust them.": _classifier_loss(_mixed, told=torch.ones_like),
        "data and noise are exchanged: at t = 1 the point must be the datum x_1.": (
            _classifier_loss(lambda x_1, t, eps: (1 - t) * x_1 + t * eps)
        ),
        "noise is added to data at full strength. On the CondOT path the datum comes with the factor t.": (
            _classifier_loss(lambda x_1, t, eps: x_1 + (1 - t) * eps)
        ),
        "this is log p(y | x_t); the loss is minus that, and at least 0.": _classifier_loss(
            _mixed, score=lambda s, y: _of_label(s.log_softmax(1), y)
        ),
        "these are scores, not log-probabilities: subtract the logsumexp over the labels (log_softmax).": (
            _classifier_loss(_mixed, score=lambda s, y: -_of_label(s, y))
        ),
        "cross_entropy takes scores and does the softmax itself; after a softmax of yours it is applied twice, and the "
        "loss can never come near 0. Give it the scores.": _classifier_loss(
            _mixed, score=lambda s, y: F.cross_entropy(s.softmax(1), y, reduction="none")
        ),
        "you averaged over the batch; return the loss of each example.": _classifier_loss(
            _mixed, score=lambda s, y: F.cross_entropy(s, y)
        ),
    },
)

# ---------------------------------------------------------------------- squeezed-cloud (derivation)


def _two_spreads(generator):
    return _number(generator, 1.3, 2.2), _number(generator, 0.4, 0.9), _number(generator, 1.5, 3.0)


def _by_integration(s, s_y, w):
    """exp ∫ of the guided slope (1 − w) d log std_t + w d log std_t(y), by the midpoint rule."""
    t = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000

    def slope(s):
        return (t * s**2 - (1 - t)) / ((t * s) ** 2 + (1 - t) ** 2)

    return ((1 - w) * slope(s) + w * slope(s_y)).mean().exp()


squeezed_cloud = Exercise(
    inputs=_two_spreads,
    right=lambda s, s_y, w: s ** (1 - w) * s_y**w,
    also_right=(lambda s, s_y, w: s * (s_y / s) ** w, _by_integration),
    wrong={
        "this is the tilted density's spread. Guidance tilts the noised densities at each time, and the flow of that "
        "field ends elsewhere: integrate the slope of ũ.": lambda s, s_y, w: ((1 - w) / s**2 + w / s_y**2) ** -0.5,
        "you mixed the standard deviations. The slopes mix, and a slope is the derivative of log std_t.": (
            lambda s, s_y, w: (1 - w) * s + w * s_y
        ),
        "guided and unguided are swapped: w = 1 must give s, and w = 0 must give S.": lambda s, s_y, w: (
            s**w * s_y ** (1 - w)
        ),
        "this is the variance; its square root is asked for.": lambda s, s_y, w: s ** (2 * (1 - w)) * s_y ** (2 * w),
        "this is the answer for w + 1: with w = 1 the samples must have the spread s of the label.": (
            lambda s, s_y, w: s**-w * s_y ** (1 + w)
        ),
        "s is what w = 1 gives. A larger w squeezes further.": lambda s, s_y, w: s_y,
        "the exponents of S and s must add up to 1: with S = s nothing is squeezed.": lambda s, s_y, w: s_y**w,
    },
    rtol=2e-3,  # so that a numeric integration passes
)

# ---------------------------------------------------------------------- enough-guidance (open)

HEAP, FINEST = 1.0, 0.01
WEIGHTS = torch.arange(0, 12, FINEST, dtype=torch.float64)


def _heaps_field(spread):
    """u_t(x | y) of two equal heaps at −1 (label 0) and 1 (label 1); label 2: none given."""

    def v(t, x, y):
        t = torch.as_tensor(t).reshape(-1, 1)
        variance = (t * spread) ** 2 + (1 - t) ** 2
        slope = (t * spread**2 - (1 - t)) / variance
        left, right = (mean + slope * (x - t * mean) for mean in (-HEAP, HEAP))
        share = torch.sigmoid(2 * t * HEAP * x / variance)  # of the right heap
        mean = (1 - share) * left + share * right
        y = y.reshape(-1, 1)
        return torch.where(y == 0, left, torch.where(y == 1, right, mean))

    return v


def _enough(generator):
    spread, level = _number(generator, 0.6, 0.7), _number(generator, 0.3, 0.5)
    return _heaps_field(spread.item()), level.item()


def _ends(v, start, weights, steps=100):
    """Where one start lands, for many weights at once, by Heun's method."""
    none, one = torch.full((len(weights),), 2), torch.full((len(weights),), 1)
    w, x, h = weights[:, None], torch.full((len(weights), 1), start, dtype=torch.float64), 1 / steps

    def guided(t, x):
        return (1 - w) * v(t, x, none) + w * v(t, x, one)

    for k in range(steps):
        slope = guided(k * h, x)
        x = x + h / 2 * (slope + guided((k + 1) * h, x + h * slope))
    return x[:, 0]


def _first_above(values, level):
    """The weight at which the rising values pass the level, by linear interpolation."""
    k = int((values > level).long().argmax())
    if k == 0:
        return WEIGHTS[0].item()
    part = (level - values[k - 1]) / (values[k] - values[k - 1])
    return (WEIGHTS[k - 1] + part * FINEST).item()


def _from_quantile(p):
    return lambda v, level: _first_above(_ends(v, NormalDist().inv_cdf(p), WEIGHTS), level)


def _bisected(v, level):
    low, high = 0.0, 12.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        lands = _ends(v, -1.6449, torch.tensor([middle], dtype=torch.float64), steps=80).item()
        low, high = (middle, high) if lands < level else (low, middle)
    return (low + high) / 2


def _tilted_instead(v, level):
    """The weight for which the tilted density has 5 in 100 of its mass below the level."""
    label, x = torch.ones(2, dtype=torch.long), torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    slope = v(0.5, x, label).diff(dim=0).item()
    variance = (2 + slope) / (2 - slope)
    x = torch.linspace(-4, 6, 2001, dtype=torch.float64)
    log_q = -((x - HEAP) ** 2) / (2 * variance) + (WEIGHTS[:, None] - 1) * F.logsigmoid(2 * HEAP * x / variance)
    below = log_q.softmax(1)[:, x < level].sum(1)
    return _first_above(-below, -0.05)


def _by_a_straight_line(v, level):
    at_zero, at_one = _ends(v, -1.6449, torch.tensor([0.0, 1.0], dtype=torch.float64))
    return ((level - at_zero) / (at_one - at_zero)).item()


enough_guidance = Exercise(
    inputs=_enough,
    right=_from_quantile(0.05),
    also_right=(_bisected,),
    wrong={
        "at this weight half of the samples land above the level: you followed the median of the noise.": (
            _from_quantile(0.5)
        ),
        "you followed the 95% quantile: 95 of 100 samples land below its end. Follow the trajectory that has 5 of 100 "
        "below it.": _from_quantile(0.95),
        "here 99 of 100 land above, more than was asked for.": _from_quantile(0.01),
        "this is the weight of the tilted density. Guidance does not sample it: follow the guided field.": (
            _tilted_instead
        ),
        "you interpolated between the ends for w = 0 and w = 1. The end does not move evenly with w.": (
            _by_a_straight_line
        ),
        "this counts from the conditional field, as Ho and Salimans do. Here w = 1 is the conditional field.": (
            lambda v, level: _from_quantile(0.05)(v, level) - 1
        ),
    }
    | {
        f"you return {w:g} whatever the field and the level are. A higher level needs a larger weight: compute it from "
        "`v` and `level`.": (lambda v, level, w=w: w)
        for w in (1.0, 2.0, 3.0, 4.0, 5.0)
    }
    | {
        f"nearly, but the weight is {size}, by more than 0.05. Too few steps of the solver, of the search, or too few "
        "points?": (lambda v, level, shift=shift: _from_quantile(0.05)(v, level) + shift)
        for size, shift in (("a little too large", 0.1), ("a little too small", -0.06))
    },
    atol=0.05,  # so that Euler with 50 steps passes, and a search on tens of thousands of samples
    rtol=0,
)

EXERCISES: dict[str, Exercise] = {
    "guided-from-two": guided_from_two,
    "which-half-is-which": which_half_is_which,
    "drop-each-alone": drop_each_alone,
    "what-the-classifier-sees": what_the_classifier_sees,
    "squeezed-cloud": squeezed_cloud,
    "enough-guidance": enough_guidance,
}
