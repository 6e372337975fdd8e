"""What names say of inputs and outputs: which two may be one state, what sounds like a state, a step or a constant.

Names only propose. Words that tell before from after are dropped; what is left of two names must be the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

BEFORE = frozenset(
    ("in", "input", "prev", "previous", "old", "past", "init", "initial", "last", "before", "cur", "current", "i")
)
AFTER = frozenset(
    (
        "out",
        "output",
        "next",
        "new",
        "n",
        "present",
        "updated",
        "update",
        "cur",
        "current",
        "final",
        "last",
        "after",
        "o",
    )
)
PLAIN = frozenset(("in", "out", "input", "output", "i", "o", "n"))
"""Words that say nothing of a state when they stand alone."""
STATE = frozenset(
    (
        *(
            "state",
            "states",
            "stat",
            "st",
            "hidden",
            "cell",
            "cache",
            "cached",
            "caches",
            "mem",
            "memory",
            "buf",
            "buffer",
        ),
        *("carry", "carried", "context", "ctx", "h", "c", "hx", "cx", "hc", "lstm", "gru", "rnn", "past", "present"),
        *("prev", "previous", "pos", "position", "counter", "count", "offset", "overlap", "history", "kv", "recurrent"),
        *("frames_seen", "s", "tail", "delay", "queue", "fifo", "accumulator", "running", "ema"),
    )
)
STEP = frozenset(
    (
        *("x", "y", "audio", "speech", "wave", "waveform", "wav", "pcm", "frame", "frames", "chunk", "feat", "feats"),
        *("feature", "features", "mel", "mix", "noisy", "clean", "enhanced", "enh", "denoised", "spec", "spectrum"),
        *("spectrogram", "mag", "mask", "signal", "sample", "samples", "token", "tokens", "ids", "text", "image"),
        *("video", "obs", "observation", "action", "reward", "data", "logits", "prob", "probs", "score", "scores"),
        *("prediction", "pred", "label", "labels", "embedding", "embeddings", "signals", "pixels", "step", "steps"),
    )
)
CONSTANT = frozenset(
    (
        *("sr", "rate", "sample_rate", "samplerate", "sampling", "hz", "sid", "speaker", "spk", "spkr", "lang"),
        *(
            "language",
            "scale",
            "scales",
            "speed",
            "temperature",
            "alpha",
            "threshold",
            "gain",
            "db",
            "style",
            "emotion",
        ),
        *("accent", "domain", "condition", "config", "mode", "genre", "locale"),
    )
)


def words(name: str) -> tuple[str, ...]:
    """Lower-case words and numbers: ``stateN`` -> state, n; ``in_cache0`` -> in, cache, 0."""
    split = re.sub(r"([a-z])([A-Z])", r"\1 \2", re.sub("past_key_values?", "past", name))
    split = re.sub(r"([A-Za-z])(\d)", r"\1 \2", split)
    split = re.sub(r"(\d)([A-Za-z])", r"\1 \2", split)
    return tuple(w.lower() for w in re.split(r"[^A-Za-z0-9]+", split) if w)


def stems(name: str, after: bool) -> list[tuple[str, ...]]:
    """What may be left of a name, the surest first."""
    whole = words(name)
    drop = AFTER if after else BEFORE
    plain = tuple(w for w in whole if w not in drop)
    if not plain and not set(whole) <= PLAIN:
        plain = ("",)  # past and present, prev and next
    found = [plain]
    ends = {"n", "t", "y", "1"} if after else {"0", "t", "x"}
    # hn and cn, h_t and c_t, hy beside hx, h_1 beside h_0.
    if plain and plain[-1] in ends and len(plain) > 1:
        found.append(plain[:-1])
    if plain and len(plain[-1]) > 1 and plain[-1][-1] in ends:
        found.append((*plain[:-1], plain[-1][:-1]))
    return [stem for stem in dict.fromkeys(found) if not all(w.isdigit() for w in stem)]


def matches(inputs: Iterable[str], outputs: Iterable[str]) -> dict[str, str]:
    """Inputs with the one output that has the same stem; none where two could claim the other."""
    left_in, left_out = list(inputs), list(outputs)
    pairs: dict[str, str] = {}
    for depth_in, depth_out in ((0, 0), (0, 1), (1, 0), (1, 1)):
        by_in = _by_stem(left_in, False, depth_in)
        by_out = _by_stem(left_out, True, depth_out)
        for stem, names in by_in.items():
            others = by_out.get(stem, [])
            if len(names) == 1 and len(others) == 1 and names[0] != others[0]:
                pairs[names[0]] = others[0]
        left_in = [n for n in left_in if n not in pairs]
        left_out = [n for n in left_out if n not in pairs.values()]
    return pairs


def _by_stem(names: list[str], after: bool, depth: int) -> dict[tuple[str, ...], list[str]]:
    found: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        known = stems(name, after)
        if depth < len(known):
            found.setdefault(known[depth], []).append(name)
    return found


def sounds_like_state(name: str) -> bool:
    """``h0``, ``in_cache_3``, ``lstm_c``: a state's word is among its words, at the end of one or the like."""
    return any(w in STATE or (len(w) == 2 and w[0] in "hc" and w[1] in "0nxyt") for w in words(name)) and not any(
        w in STEP for w in words(name)
    )


def sounds_like_step(name: str) -> bool:
    """``audio``, ``x``, ``input_ids``; also a mere ``input`` or ``output``, but not ``input_3``: all are called so."""
    own = words(name)
    return any(w in STEP for w in own) or all(w in ("input", "inputs", "output", "outputs", "in", "out") for w in own)


def sounds_like_constant(name: str) -> bool:
    return any(w in CONSTANT for w in words(name))
