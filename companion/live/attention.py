r"""Live figures of chapter 16: what a cache costs, and what a query reads of it.

`cache_and_speed()`: bytes of the cache of one reader and the most tokens a second of B readers together, for four ways
to store keys and values of a published model, on a machine of the given bandwidth and arithmetic:

    numbers a token and layer:   2 H d   (MHA),   2 G d   (GQA),   2 d   (MQA),   d_c + d/2   (MLA)
    tokens a second = B / max( FLOPs / peak, (weights + B · cache) / bandwidth )

H heads of width d, G groups, d_c the width of the latent; a rotary key of d/2. The number of heads is the published one
times a power of two; their width and the weights of the model stay. `what_is_read()`: which tokens a query sees, with a
full or a sliding window, and in which slots of memory their keys and values lie.
"""

import math

import torch
from torch import Tensor

from companion.live import Choice, Heat, Line, LiveFigure, Panel, Points, Readout, Slider

BYTES = 2  # of a number: half precision, weights and cache alike
MODELS = {  # key: (name, layers, heads, width of a head, weights that a token meets)
    "llama-8b": ("Llama 3 8B: 32 layers, 32 heads of 128", 32, 32, 128, 8.0e9),
    "llama-70b": ("Llama 3 70B: 80 layers, 64 heads of 128", 80, 64, 128, 70.6e9),
    "deepseek-v2": ("DeepSeek-V2: 60 layers, 128 heads of 128", 60, 128, 128, 21e9),
}
KINDS = ("mha", "gqa", "mqa", "mla")
LABELS = ("every head its own (MHA)", "groups share (GQA)", "all share one (MQA)", "one latent for all (MLA)")
CONTEXTS = (8, 18, 61)  # powers of two: from 256 tokens to 262,144, and points of a curve


# ---------------------------------------------------------------------- what a cache costs


def cached_and_flops(heads: Tensor, d_head: Tensor, groups: Tensor, d_latent: Tensor) -> tuple[Tensor, Tensor]:
    """For the four kinds: numbers cached for a token and layer, and FLOPs of one query with one cached token, (4,)."""
    d_rope, one = d_head / 2, torch.ones_like(d_head)
    cached = torch.stack([2 * heads * d_head, 2 * groups * d_head, 2 * d_head * one, d_latent + d_rope])
    plain = 4 * heads * d_head
    return cached, torch.stack([plain, plain, plain, 2 * heads * (2 * d_latent + d_rope)])


ROOF_X = torch.linspace(-1, 4, 51)  # powers of 10
COLORS = (0, 1, 2, 3)  # of the four kinds, in the palette: as in the figures of the text


def _costs(models, model, more, groups, latent, context, batch, bandwidth, peak, contexts):
    """What `cache_and_speed` draws. Logarithms, so that the panels span machines and models."""
    layers, heads, d_head, weights = models.index_select(0, model.reshape(1).long())[0].unbind()
    heads = heads * 2**more
    cached, flops = cached_and_flops(heads, d_head, torch.minimum(2**groups, heads), latent)
    at = torch.cat([contexts, context.reshape(1)])
    tokens = 2**at  # (points + 1,)
    memory = BYTES * layers * cached[:, None] * tokens  # of one reader, (4, points + 1)
    work = batch * (2 * weights + layers * flops[:, None] * tokens)
    bytes_read = BYTES * weights + batch * memory
    arithmetic, reading = work / (peak * 1e12), bytes_read / (bandwidth * 1e12)
    speed = batch / torch.maximum(arithmetic, reading)
    here = context.reshape(1).expand(4)
    intensity = flops / (BYTES * cached)
    attainable = torch.minimum(peak, intensity * bandwidth)
    return {
        "memory": (memory[:, :-1] / 1e9).log10(),
        "memory_here": torch.stack([here, (memory[:, -1] / 1e9).log10()], dim=1),
        "speed": speed[:, :-1].log10(),
        "speed_here": torch.stack([here, speed[:, -1].log10()], dim=1),
        "roof": torch.minimum(peak.log10(), ROOF_X.to(peak) + bandwidth.log10()),
        "on_the_roof": torch.stack([intensity.log10(), attainable.log10()], dim=1),
        "gigabytes": memory[:, -1] / 1e9,
        "tokens": speed[:, -1],
        "ridge": peak / bandwidth,
        "heads": heads,
    }


def cache_and_speed() -> LiveFigure:
    """Cache and speed of a published model under four ways of storing keys and values."""
    low, high, points = CONTEXTS

    def evaluate(models, contexts, model, more, groups, latent, context, batch, bandwidth, peak):
        out = _costs(models, model, more, groups, latent, context, batch, bandwidth, peak, contexts)
        for name, row in (("memory", out["memory"]), ("speed", out["speed"])):
            out |= {f"{name}_{kind}": row[k] for k, kind in enumerate(KINDS)}
        out |= {f"gb_{kind}": out["gigabytes"][k] for k, kind in enumerate(KINDS)}
        out |= {f"rate_{kind}": out["tokens"][k] for k, kind in enumerate(KINDS)}
        return {key: value for key, value in out.items() if key not in ("memory", "speed", "gigabytes", "tokens")}

    def curves(name, labels):
        lines = [Line("contexts", f"{name}_{kind}", color=COLORS[k], label=labels[k]) for k, kind in enumerate(KINDS)]
        return [*lines, Points(f"{name}_here", color="kind", size=5, alpha=1.0)]

    return LiveFigure(
        name="cache-and-speed",
        title="What the next letter costs",
        description=(
            "A model of the shape {model}, but with {heads} heads, in half precision, with {batch} readers whose texts "
            "are two to the power {context} tokens long. Left: the cache of one reader against the length. It is "
            "{gb_mha} gigabytes if every head has keys and values of its own, {gb_gqa} if heads share them in groups, "
            "{gb_mqa} if all heads share one, {gb_mla} if a latent is stored. Middle: the most tokens a second of all "
            "readers together: {rate_mha}, {rate_gqa}, {rate_mqa} and {rate_mla}. Right: the roofline of the machine, "
            "with {ridge} FLOPs a byte at its edge, and the attention of the four kinds on it."
        ),
        controls=[
            Choice("model", label="shape of", options={k: m[0] for k, m in MODELS.items()}, value="llama-8b"),
            Slider("more", label="heads: × 2 to the power", low=-3, high=3, step=1, value=0),
            Slider("groups", label="groups: 2 to the power", low=1, high=5, step=1, value=3),
            Slider("latent", label="width of the latent", low=64, high=2048, step=64, value=512),
            Slider("context", label="context: 2 to the power", low=low, high=high, step=0.5, value=13),
            Slider("batch", label="readers at once", low=1, high=256, step=1, value=32),
            Slider("bandwidth", label="memory bandwidth, TB/s", low=0.05, high=8, step=0.05, value=3.35),
            Slider("peak", label="arithmetic, TFLOP/s", low=10, high=2500, step=10, value=990),
        ],
        evaluate=evaluate,
        inputs={
            "models": torch.tensor([m[1:] for m in MODELS.values()]),
            "contexts": torch.linspace(low, high, points),
            "intensities": ROOF_X,
            "kind": torch.tensor(COLORS, dtype=torch.float32),
        },
        panels=[
            Panel(
                title="cache of one reader",
                x=(low, high),
                y=(-2.5, 3.5),
                xlabel="context, powers of 2",
                ylabel="gigabytes, powers of 10",
                marks=curves("memory", LABELS),
            ),
            Panel(
                title="tokens a second, all readers",
                x=(low, high),
                y=(-1.5, 5.5),
                xlabel="context, powers of 2",
                ylabel="tokens a second, powers of 10",
                marks=curves("speed", ("",) * len(KINDS)),
            ),
            Panel(
                title="roofline: the attention alone",
                x=(-1, 4),
                y=(-1.5, 3.5),
                xlabel="FLOPs a byte, powers of 10",
                ylabel="TFLOP/s, powers of 10",
                marks=[
                    Line("intensities", "roof", color=6, width=1.6),
                    Points("on_the_roof", color="kind", size=6, alpha=1.0),
                ],
            ),
        ],
        readouts=[
            Readout("heads", label="heads", output="heads", digits=1),
            *(Readout(f"gb_{kind}", label=f"GB, {kind.upper()}", output=f"gb_{kind}") for kind in KINDS),
            *(Readout(f"rate_{kind}", label=f"tokens/s, {kind.upper()}", output=f"rate_{kind}") for kind in KINDS),
            Readout("ridge", label="edge of the roof, FLOPs a byte", output="ridge"),
        ],
    )


# ---------------------------------------------------------------------- what a query reads

LENGTH, SLOTS_WIDE, SLOTS_HIGH = 40, 16, 5
NEIGHBOR = 12  # tokens of the other text that shares the pool of blocks
READ, EARLIER, OTHER = -0.5, 0.5, 0.5  # on a two-sided scale from −1 to 1, whose middles are the first two colors
NOWHERE = -100.0  # a coordinate outside of every panel


def _owner(kind: str, size: Tensor, written: Tensor, slots: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """For each slot of memory: the position of our text that lies there (−1: none), and whether another's lies there.

    Args:
        kind: "full", "window" or "paged".
        size: of the window, or of a block.
        written: tokens of our text.
        slots: 0, 1, …
        order: of two blocks, the one with the smaller entry is handed out first; scattered numbers.
    """
    nobody = torch.zeros_like(slots)
    if kind == "full":
        return torch.where(slots < written, slots, -torch.ones_like(slots)), nobody
    if kind == "window":
        last = written - 1
        newest = last - torch.remainder(last - slots, size)  # the latest position that falls into this slot
        lies = (slots < size) & (newest >= 0)
        return torch.where(lies, newest, -torch.ones_like(slots)), nobody
    block, within = torch.floor(slots / size), torch.remainder(slots, size)
    total = torch.floor(torch.full_like(size, len(slots)) / size)
    turn = order.index_select(0, block.long().clamp(max=len(order) - 1))
    # Blocks are handed out in turn: the other text takes the first ones, ours the next, each in a scattered place.
    usable = (block < total).to(slots)
    first = (within == 0).to(slots) * usable  # one slot for each block
    turns = ((turn[None, :] < turn[:, None]).to(slots) * first[None, :]).sum(1)  # how many blocks come earlier
    others = torch.ceil(NEIGHBOR / size)
    position = (turns - others) * size + within
    ours = (usable > 0) & (turns >= others) & (position < written)
    theirs = (usable > 0) & (turns < others) & (turns * size + within < NEIGHBOR)
    return torch.where(ours, position, -torch.ones_like(slots)), theirs.to(slots)


def _reading(kind: str):
    """What `what_is_read` draws for one kind of cache."""

    def evaluate(written, size, layers, slots, order, positions):
        i, j = positions[:, None], positions[None, :]
        reach = size if kind == "window" else torch.full_like(size, LENGTH)
        seen = (j <= i) & (j > i - reach) & (i < written)
        now = seen & (i == written - 1)
        furthest = written - 1 - layers * (reach - 1)  # that the last token hears of, through the layers below
        through = (positions >= furthest) & (positions <= written - 1 - reach)
        height = (written - 0.5) * torch.ones_like(positions)
        position, theirs = _owner(kind, size, written, slots, order)
        read = (position >= 0) & (position > written - 1 - reach)
        held = (position >= 0).to(slots).sum()
        if kind == "paged":
            held = torch.ceil(written / size) * size
        return {
            "matrix": READ * now + EARLIER * (seen & ~now),
            "through": torch.stack([torch.where(through, positions + 0.5, NOWHERE), height], dim=1),
            "memory": (READ * read + OTHER * theirs).reshape(SLOTS_HIGH, SLOTS_WIDE),
            "reads": read.to(slots).sum(),
            "holds": held,
            "reaches": torch.minimum(written, layers * (reach - 1) + 1),
        }

    return evaluate


def what_is_read() -> LiveFigure:
    """Which tokens a query sees, and where in memory their keys and values lie, for three kinds of cache."""
    blocks = SLOTS_WIDE * SLOTS_HIGH
    step = next(k for k in range(int(blocks * 0.62), blocks) if math.gcd(k, blocks) == 1)
    return LiveFigure(
        name="what-is-read",
        title="What the next letter reads, and where it lies",
        description=(
            "A text of {written} tokens with a cache of the kind {kind}. Left: a square of queries, from the bottom "
            "up, and keys, left to right; blue is what earlier queries saw, orange what the present one reads: {reads} "
            "tokens; green dots what reaches it through the layers below. Right: 80 slots of memory in five rows; "
            "orange are those that are read, blue those of another text. The text holds {holds} slots. Through "
            "{layers} layers the last token is reached by {reaches} tokens. The window, or the block, has the size "
            "{size}."
        ),
        controls=[
            Choice(
                "kind",
                label="cache",
                options={"full": "everything", "window": "sliding window", "paged": "pages"},
                value="window",
            ),
            Slider("written", label="tokens written", low=1, high=LENGTH, step=1, value=30),
            Slider("size", label="size of the window, or of a block", low=2, high=16, step=1, value=8),
            Slider("layers", label="layers", low=1, high=6, step=1, value=2),
        ],
        evaluate={kind: _reading(kind) for kind in ("full", "window", "paged")},
        select="kind",
        inputs={
            "slots": torch.arange(float(blocks)),
            "order": torch.remainder(torch.arange(float(blocks)) * step, blocks),
            "positions": torch.arange(float(LENGTH)),
            "nowhere": torch.full((1, 2), NOWHERE),
        },
        panels=[
            Panel(
                title="who sees whom",
                x=(0, LENGTH),
                y=(0, LENGTH),
                xlabel="key at position",
                ylabel="query at position",
                aspect=1,
                marks=[
                    Heat("matrix", limits=(-1, 1), diverging=True, smooth=False),
                    Points("nowhere", color=1, label="the present token reads"),
                    Points("nowhere", color=0, label="earlier tokens read"),
                    Points("through", color=2, size=2.5, label="reaches it through the layers below"),
                ],
            ),
            Panel(
                title="where it lies in memory",
                x=(0, SLOTS_WIDE),
                y=(0, SLOTS_HIGH),
                xlabel="slot of a row",
                ylabel="row",
                marks=[
                    Heat("memory", limits=(-1, 1), diverging=True, smooth=False),
                    Points("nowhere", color=1, label="the present token reads"),
                    Points("nowhere", color=0, label="another text (in pages)"),
                ],
            ),
        ],
        readouts=[
            Readout("reads", label="tokens read", output="reads", digits=1),
            Readout("holds", label="slots held", output="holds", digits=1),
            Readout("reaches", label="tokens that reach this one", output="reaches", digits=1),
        ],
        columns=2,
    )
