"""The exercises of chapter 16, advanced attention: each with its right answer and the wrong ones that people give."""

import math

import torch

from companion.exercises.checking import Exercise


def _normal(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# ---------------------------------------------------------------------- one-letter-more (warm-up; E29)


def _cache_and_token(generator):
    q, k, v = 1.5 * _normal(generator, 3, 6)
    keys, values = _normal(generator, 2, 4, 6)
    return q, k, v, keys, values


def _grow(store, row):
    return torch.cat([store, row[None]])


def _step(q, k, v, keys, values, *, scale=6**-0.5, mixed=None):
    keys, values = _grow(keys, k), _grow(values, v)
    weights = (keys @ q * scale).softmax(0)
    return weights @ (values if mixed is None else mixed(keys)), keys, values


def _step_alone(q, k, v, keys, values):
    out, _, _ = _step(q, keys[-1], values[-1], keys[:-1], values[:-1])
    return out, _grow(keys, k), _grow(values, v)


def _step_einsum(q, k, v, keys, values):
    keys, values = torch.vstack([keys, k]), torch.vstack([values, v])
    scores = torch.einsum("d,nd->n", q, keys) / math.sqrt(len(q))
    weights = scores.exp() / scores.exp().sum()
    return [torch.einsum("n,nd->d", weights, values), keys, values]


one_letter_more = Exercise(
    inputs=_cache_and_token,
    right=_step,
    also_right=(_step_einsum,),
    wrong={
        "the new token does not see itself. Its own key and value belong to what it reads: store them first, then "
        "attend.": _step_alone,
        "you stored the query in place of the key. No later token ever asks for this query: keys and values are "
        "kept.": lambda q, k, v, keys, values: (*_step(q, k, v, keys, values)[:1], _grow(keys, q), _grow(values, v)),
        "the scores are not scaled. Divide them by the root of the width of the vectors that are dotted.": (
            lambda q, k, v, keys, values: _step(q, k, v, keys, values, scale=1.0)
        ),
        "you divided the scores by the width; it is the root of the width.": (
            lambda q, k, v, keys, values: _step(q, k, v, keys, values, scale=1 / 6)
        ),
        "your weights mix the keys. Keys are only compared with; what is mixed are the values.": (
            lambda q, k, v, keys, values: _step(q, k, v, keys, values, mixed=lambda keys: keys)
        ),
        "the output is right, but you returned the old cache: the next token will not find this one.": (
            lambda q, k, v, keys, values: (_step(q, k, v, keys, values)[0], keys, values)
        ),
        "the output is right, but the new row stands first in the cache. It comes last, so that row p is position p.": (
            lambda q, k, v, keys, values: (
                _step(q, k, v, keys, values)[0],
                torch.cat([k[None], keys]),
                torch.cat([v[None], values]),
            )
        ),
    },
)

# ---------------------------------------------------------------------- where-it-stands (find the bug)

_SPEEDS = (1.0, 0.3)


def _turn(x, p):
    """The two pairs of a vector of four, turned by p times their speeds."""
    angles = torch.tensor(_SPEEDS, dtype=x.dtype) * p
    cos, sin = angles.cos(), angles.sin()
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)


def _text(generator):
    q, k, v = 1.5 * _normal(generator, 3, 6, 4)
    return _turn, q, k, v


def _decoded(query_at=lambda p, j: p, key_at=lambda p, j: j, value=lambda turn, v, j: v):
    """Decoding one token after another with the positions of query, key and value planted."""

    def decode(turn, q, k, v):
        rows = []
        for p in range(len(q)):
            scores = torch.stack(
                [turn(q[p], query_at(p, j)) @ turn(k[j], key_at(p, j)) for j in range(p + 1)]
            ) / math.sqrt(q.shape[1])
            rows.append(scores.softmax(0) @ torch.stack([value(turn, v[j], j) for j in range(p + 1)]))
        return torch.stack(rows)

    return decode


def _decoded_with_a_cache(turn, q, k, v):
    keys, rows = [], []
    for p in range(len(q)):
        keys.append(turn(k[p], p))
        scores = torch.stack(keys) @ turn(q[p], p) / q.shape[1] ** 0.5
        rows.append(scores.softmax(0) @ v[: p + 1])
    return torch.stack(rows)


where_it_stands = Exercise(
    inputs=_text,
    right=_decoded_with_a_cache,
    also_right=(
        _decoded(query_at=lambda p, j: p - j, key_at=lambda p, j: 0),
        _decoded(lambda p, j: p + 3, lambda p, j: j + 3),
    ),
    wrong={
        "every query and every key still stands at position 0, so the distances are lost. The token that comes after "
        "p others stands at position p.": _decoded(lambda p, j: 0, lambda p, j: 0),
        "the queries stand where they should, the keys all at position 0: what is scored is the place of the query, "
        "not its distance to the key.": _decoded(lambda p, j: p, lambda p, j: 0),
        "the keys stand where they should, the queries all at position 0.": _decoded(lambda p, j: 0, lambda p, j: j),
        "you turn all keys by the position of the newest token. A key is turned once, by its own position, before it "
        "is stored.": _decoded(lambda p, j: 0, lambda p, j: p),
        "your keys are one position ahead of the queries: a token must have the distance 0 from itself.": (
            _decoded(lambda p, j: p, lambda p, j: j + 1)
        ),
        "you turn the values too. Positions enter the scores only; values are mixed as they are.": (
            _decoded(value=lambda turn, v, j: turn(v, j))
        ),
        "keys and queries turn in opposite directions: the score then depends on p + j, not on p − j.": (
            _decoded(lambda p, j: p, lambda p, j: -j)
        ),
    },
)

# ---------------------------------------------------------------------- average-the-heads (variant; E33)


def _key_matrix(generator):
    return _normal(generator, 5, 6 * 4), 6, 3  # six heads of width 4 in three groups


def _groups(weight, heads, groups):
    """(dim, groups, heads of a group, d_head)."""
    return weight.unflatten(1, (groups, heads // groups, -1))


def _average_by_a_loop(weight, heads, groups):
    each, parts = heads // groups, weight.chunk(heads, dim=1)
    return torch.cat([sum(parts[g * each : (g + 1) * each]) / each for g in range(groups)], dim=1)


average_the_heads = Exercise(
    inputs=_key_matrix,
    right=lambda weight, heads, groups: _groups(weight, heads, groups).mean(2).flatten(1),
    also_right=(_average_by_a_loop,),
    wrong={
        "you added the heads of a group. Their sum is as many times too large as the group has heads; take the mean.": (
            lambda weight, heads, groups: _groups(weight, heads, groups).sum(2).flatten(1)
        ),
        "your groups are made of heads that stand apart. Query head h reads group h // (heads // groups): neighbors "
        "share.": lambda weight, heads, groups: weight.unflatten(1, (heads // groups, groups, -1)).mean(1).flatten(1),
        "you kept the first head of each group and threw the others away. That is a legal start, but a worse one; the "
        "mean keeps a part of each.": lambda weight, heads, groups: _groups(weight, heads, groups)[:, :, 0].flatten(1),
        "you averaged over all heads: that is one group, multi-query attention. There are as many different keys as "
        "groups.": lambda weight, heads, groups: (
            weight.unflatten(1, (heads, -1)).mean(1, keepdim=True).repeat(1, groups, 1).flatten(1)
        ),
        "you repeated each mean for all heads of its group. The scores are right, but the cache is no smaller: the "
        "result has groups · d_head columns.": lambda weight, heads, groups: (
            _groups(weight, heads, groups).mean(2, keepdim=True).expand(-1, -1, heads // groups, -1).flatten(1)
        ),
        "you averaged neighboring columns, which are coordinates of one head. A head is a block of d_head columns; "
        "average the blocks, coordinate by coordinate.": lambda weight, heads, groups: weight.unflatten(
            1, (-1, heads // groups)
        ).mean(2),
        "you divided the sum by the root of the number of heads. That keeps the size of unrelated matrices; a mean "
        "divides by the number.": lambda weight, heads, groups: (
            _groups(weight, heads, groups).sum(2).flatten(1) / (heads // groups) ** 0.5
        ),
    },
)

# ---------------------------------------------------------------------- still-the-same-scores (find the bug; E31, E32)


def _latent_inputs(generator):
    dim, d_head, d_latent, d_rope, n = 24, 8, 14, 4, 5
    x, c = _normal(generator, dim), _normal(generator, n, d_latent)
    w_q, w_uk = _normal(generator, dim, d_head) / 5, _normal(generator, d_latent, d_head) / 2
    return x, c, w_q, w_uk, _normal(generator, d_rope), 2 * _normal(generator, n, d_rope)


def _absorbed(width, *, rope=True):
    def weights(x, c, w_q, w_uk, q_rope, k_rope):
        scores = c @ (w_uk @ (x @ w_q)) + (k_rope @ q_rope if rope else 0)
        return (scores / math.sqrt(width(x, c, w_q, q_rope))).softmax(0)

    return weights


def _naive(x, c, w_q, w_uk, q_rope, k_rope):
    q, keys = torch.cat([x @ w_q, q_rope]), torch.cat([c @ w_uk, k_rope], dim=1)
    return torch.softmax(keys @ q / len(q) ** 0.5, dim=0)


still_the_same_scores = Exercise(
    inputs=_latent_inputs,
    right=_absorbed(lambda x, c, w_q, q_rope: w_q.shape[1] + len(q_rope)),
    also_right=(_naive,),
    wrong={
        "the scores are still divided by the root of the width of the absorbed vectors. They are the scores of the "
        "naive form, and there vectors of d_head + d_rope are dotted.": (
            _absorbed(lambda x, c, w_q, q_rope: c.shape[1] + len(q_rope))
        ),
        "you divided by the root of the width of the model. The scale belongs to the vectors that the naive form dots, "
        "d_head + d_rope.": _absorbed(lambda x, c, w_q, q_rope: len(x)),
        "you divided by √d_head. The rotary part is dotted too: the width is d_head + d_rope.": (
            _absorbed(lambda x, c, w_q, q_rope: w_q.shape[1])
        ),
        "you divided by the root of the width of the latent. The latent is what is stored; the scale belongs to what "
        "the naive form dots, d_head + d_rope.": _absorbed(lambda x, c, w_q, q_rope: c.shape[1]),
        "you left the rotary part out of the scores: the distances are lost.": (
            _absorbed(lambda x, c, w_q, q_rope: w_q.shape[1] + len(q_rope), rope=False)
        ),
        "you scaled the two parts apart. They are two pieces of one dot product, which has one scale.": (
            lambda x, c, w_q, w_uk, q_rope, k_rope: (
                c @ w_uk @ (x @ w_q) / w_q.shape[1] ** 0.5 + k_rope @ q_rope / len(q_rope) ** 0.5
            ).softmax(0)
        ),
        "the scores are not scaled at all: divide them by √(d_head + d_rope).": _absorbed(lambda x, c, w_q, q_rope: 1),
    },
)

# ---------------------------------------------------------------------- two-halves (derivation)


def _halves(generator):
    """Outputs and log-sums of two blocks of keys; in one row the scores are large."""
    o_1, o_2 = _normal(generator, 2, 5, 3)
    s_1, s_2 = _normal(generator, 2, 5)
    large = torch.tensor([0.0, 0.0, 0.0, 0.0, 800.0], dtype=torch.float64)
    return o_1, s_1 + large, o_2, s_2 + large


def _merged(weight):
    def merge(o_1, s_1, o_2, s_2):
        w = weight(s_1, s_2)[:, None]
        return w * o_1 + (1 - w) * o_2

    return merge


def _by_softmax(o_1, s_1, o_2, s_2):
    w = torch.stack([s_1, s_2]).softmax(0)
    return w[0][:, None] * o_1 + w[1][:, None] * o_2


def _by_the_sum(o_1, s_1, o_2, s_2):
    s = torch.logaddexp(s_1, s_2)
    return (s_1 - s).exp()[:, None] * o_1 + (s_2 - s).exp()[:, None] * o_2


two_halves = Exercise(
    inputs=_halves,
    right=_merged(lambda s_1, s_2: (s_1 - s_2).sigmoid()),
    also_right=(_by_softmax, _by_the_sum),
    wrong={
        "you took the plain mean. A half whose scores are high must count for more: each half has the weight of its "
        "sum of exponentials.": _merged(lambda s_1, s_2: torch.full_like(s_1, 0.5)),
        "the formula is right, the numbers overflow: s is a logarithm, and e^800 is no number. Only the difference of "
        "the two logarithms matters.": _merged(lambda s_1, s_2: s_1.exp() / (s_1.exp() + s_2.exp())),
        "you weighted the halves by s itself. s is the logarithm of the sum; the weights are the sums.": (
            _merged(lambda s_1, s_2: s_1 / (s_1 + s_2))
        ),
        "the halves are exchanged: the one with the larger sum must get the larger weight.": (
            _merged(lambda s_1, s_2: (s_2 - s_1).sigmoid())
        ),
        "you added the two outputs. Each half is a mean with weights that sum to one already; together they must "
        "sum to one again.": lambda o_1, s_1, o_2, s_2: o_1 + o_2,
        "you kept the half with the larger sum and dropped the other.": _merged(lambda s_1, s_2: (s_1 > s_2).double()),
    },
)

# ---------------------------------------------------------------------- how-many-readers (open)


def _machines(generator):
    """Five cases in which, in turn, memory, reading, arithmetic, memory again and nothing at all decides."""
    r = 1 + 0.2 * torch.rand(5, 7, generator=generator, dtype=torch.float64)
    base = torch.tensor(
        [  # weights, cache of one reader, FLOPs a token, memory, bandwidth, peak, least tokens a second
            [16e9, 1.07e9, 16e9, 80e9, 3.3e12, 990e12, 10.0],
            [16e9, 1.07e9, 16e9, 400e9, 3.3e12, 990e12, 50.0],
            [16e9, 0.02e9, 40e9, 400e9, 3.3e12, 150e12, 25.0],
            [140e9, 5.0e9, 140e9, 640e9, 26e12, 7900e12, 20.0],
            [140e9, 5.0e9, 140e9, 80e9, 3.3e12, 990e12, 20.0],
        ],
        dtype=torch.float64,
    )
    return ([tuple(case) for case in (base * r).tolist()],)


def _readers(room=None, reading=None, arithmetic=None, whole=math.floor):
    """The smallest of three limits; a limit may be planted, or left out by `math.inf`."""

    def answer(weights, cache, flops, memory, bandwidth, peak, rate):
        case = (weights, cache, flops, memory, bandwidth, peak, rate)
        limits = (
            (memory - weights) / cache if room is None else room(*case),
            (bandwidth / rate - weights) / cache if reading is None else reading(*case),
            peak / (flops * rate) if arithmetic is None else arithmetic(*case),
        )
        return max(0, whole(min(limits)))

    return answer


def _readers_by_search(weights, cache, flops, memory, bandwidth, peak, rate):
    batch = 0
    while True:
        more = batch + 1
        seconds = max((weights + more * cache) / bandwidth, more * flops / peak)
        if weights + more * cache > memory or 1 / seconds < rate:
            return batch
        batch = more


def _readers_below_zero(weights, cache, flops, memory, bandwidth, peak, rate):
    """The smallest limit as it is."""
    limits = (memory - weights) / cache, (bandwidth / rate - weights) / cache, peak / (flops * rate)
    return math.floor(min(limits))


def _none(*case):
    return math.inf


def _readers_one_after_another(weights, cache, flops, memory, bandwidth, peak, rate):
    """Adds the two times."""
    most = (1 / rate - weights / bandwidth) / (cache / bandwidth + flops / peak)
    return max(0, math.floor(min(most, (memory - weights) / cache)))


how_many_readers = Exercise(
    inputs=_machines,
    apply=lambda answer, cases: [answer(*case) for case in cases],
    right=_readers(),
    also_right=(_readers_by_search,),
    wrong={
        "the caches of your readers fill the memory, but the weights must lie there as well.": (
            _readers(room=lambda w, c, f, m, b, p, r: m / c)
        ),
        "you looked at the memory only. The bytes must also be read, at every step, before the next token is due.": (
            _readers(reading=_none, arithmetic=_none)
        ),
        "you looked at the speed only: weights and caches must fit into the memory.": _readers(room=_none),
        "you forgot the arithmetic. With small caches many readers fit, and each of them costs FLOPs.": (
            _readers(arithmetic=_none)
        ),
        "you read the weights once for each reader. They are read once a step, for all of them: that is why readers "
        "are served together.": _readers(reading=lambda w, c, f, m, b, p, r: b / (r * (w + c))),
        "you forgot the bandwidth. Weights and caches must be read at every step, before the next token is due: this "
        "is what decoding waits for.": _readers(reading=_none),
        "you read the caches at every step, but not the weights. They are read too, once a step for all readers.": (
            _readers(reading=lambda w, c, f, m, b, p, r: b / (r * c))
        ),
        "your count is negative where even the weights do not fit, or cannot be read in time: take 0 readers then.": (
            _readers_below_zero
        ),
        "you rounded up: the last of your readers no longer fits.": _readers(whole=math.ceil),
        "you added the time for reading and the time for arithmetic. On the roofline the two overlap, and a step takes "
        "the longer of them.": _readers_one_after_another,
    },
    atol=1e-6,
    rtol=0,
)

EXERCISES = {
    "one-letter-more": one_letter_more,
    "where-it-stands": where_it_stands,
    "average-the-heads": average_the_heads,
    "still-the-same-scores": still_the_same_scores,
    "two-halves": two_halves,
    "how-many-readers": how_many_readers,
}
