"""All methods once more: slow, plain numpy in float64, written from the papers and from what recipes expect.

Nothing here imports `plait`. A method is a function of (inputs, base, parameters); the inputs have the computing dtype. What
decides between entries (deltas and their magnitudes, votes and the factors in them) is rounded to that dtype, as it is part of
the definition; everything else is float64.
"""

from __future__ import annotations

import hashlib
from math import floor

import numpy as np


def uniform(seed, tensor, model, start, count):
    """The numbers of `plait.ops.random.uniform`, from its docstring."""
    out = []
    for number in range(start, start + count):
        high, low = divmod(number, 2**32)
        digest = hashlib.blake2b(f"{seed}\0{tensor}\0{model}\0{high}".encode(), digest_size=8).digest()
        x = low // 32 * 16 + low % 16
        for key in (digest[:4], digest[4:]):
            x = (x + int.from_bytes(key, "little")) % 2**32
            x ^= x >> 16
            x = x * 0x21F0AAAD % 2**32
            x ^= x >> 15
            x = x * 0xD35A2D97 % 2**32
            x ^= x >> 15
        if low // 16 % 2:
            x = x % 2**16 * 2**16 + x // 2**16
        out.append((x >> 8) / 2**24)
    return np.array(out, dtype=np.float64)


def wide(xs):
    return [x.astype(np.float64) for x in xs]


def flat(xs):
    return [x.astype(np.float64).reshape(-1) for x in xs]


def deltas(xs, base):
    return [x if base is None else (x - base).astype(x.dtype) for x in xs]


def add_base(base, merged):
    return merged if base is None else base.astype(np.float64) + merged


def passthrough(xs, base, p):
    (x,) = wide(xs)
    return x if p["scale"][0] is None else x * p["scale"][0]


def linear(xs, base, p):
    merged = sum(w * x for w, x in zip(p["weight"], wide(xs), strict=True))
    return merged / sum(p["weight"]) if p["normalize"] else merged


def slerp(xs, base, p):
    a, c = flat([base, xs[0]])
    t = p["t"]
    na, nc = (n if n > 1e-8 else 1.0 for n in (np.linalg.norm(a), np.linalg.norm(c)))
    cosine = np.clip((a / na) @ (c / nc), -1, 1)
    if abs(cosine) > 0.9995:
        merged = (1 - t) * a + t * c
    else:
        th = np.arccos(cosine)
        merged = (np.sin((1 - t) * th) * a + np.sin(t * th) * c) / np.sin(th)
    return merged.reshape(base.shape)


def nuslerp(xs, base, p):
    w = p["weight"]
    t = w[1] / (w[0] + w[1]) if abs(w[0] + w[1]) >= 1e-6 else 0.5
    a, c = wide(deltas(xs, base))

    def arc(a, c):
        cosine = np.clip((a / max(np.linalg.norm(a), 1e-7)) @ (c / max(np.linalg.norm(c), 1e-7)), -1, 1)
        if 1 - cosine**2 <= 1e-12:
            return (1 - t) * a + t * c
        th = np.arccos(cosine)
        return (np.sin((1 - t) * th) * a + np.sin(t * th) * c) / np.sin(th)

    if p["nuslerp_flatten"]:
        merged = arc(a.reshape(-1), c.reshape(-1)).reshape(a.shape)
    else:
        axis = 0 if p["nuslerp_row_wise"] else -1
        a, c = np.atleast_1d(a), np.atleast_1d(c)
        rows = zip(
            np.moveaxis(a, axis, -1).reshape(-1, a.shape[axis]),
            np.moveaxis(c, axis, -1).reshape(-1, a.shape[axis]),
            strict=True,
        )
        moved = np.moveaxis(a, axis, -1).shape
        merged = np.moveaxis(np.array([arc(u, v) for u, v in rows]).reshape(moved), -1, axis).reshape(xs[0].shape)
    return add_base(base, merged)


def multislerp(xs, base, p):
    vectors = flat(deltas(xs, base))
    if len(vectors) == 1:
        return add_base(base, vectors[0].reshape(xs[0].shape))
    w = np.array(p["weight"], dtype=np.float64)
    if p["normalize_weights"]:
        w = w / w.sum()
    norms = [np.linalg.norm(x) for x in vectors]
    units = [x / (n + p["eps"]) for x, n in zip(vectors, norms, strict=True)]
    mean = sum(wi * u for wi, u in zip(w, units, strict=True))
    if np.linalg.norm(mean) < p["eps"]:
        merged = sum(wi * x for wi, x in zip(w, vectors, strict=True))
    else:
        mean = mean / np.linalg.norm(mean)
        tangent = sum(wi * (u - (u @ mean) * mean) for wi, u in zip(w, units, strict=True))
        s = np.linalg.norm(tangent) + p["eps"]
        merged = (mean * np.cos(s) + tangent * np.sin(s) / s) * sum(wi * n for wi, n in zip(w, norms, strict=True))
    return add_base(base, merged.reshape(xs[0].shape))


def karcher(xs, base, p):
    vectors = flat(xs)
    if len(vectors) == 1:
        return xs[0].astype(np.float64)
    tol = p["tol"]
    norms = [np.linalg.norm(x) for x in vectors]
    units = [x / n for x, n in zip(vectors, norms, strict=True) if n > tol]
    if not units:
        return np.zeros(xs[0].shape)
    alpha = 1 / len(units)
    mean = sum(alpha * u for u in units)
    mean = mean / np.linalg.norm(mean) if np.linalg.norm(mean) >= tol else units[0]
    for _ in range(p["max_iter"]):
        tangent = np.zeros_like(mean)
        for u in units:
            cosine = np.clip(mean @ u, -1, 1)
            th = np.arccos(cosine)
            if th >= tol and np.pi - th >= max(tol, 1e-7):
                tangent += alpha * th / np.sin(th) * (u - cosine * mean)
        step = np.linalg.norm(tangent)
        if step < tol:
            break
        mean = np.cos(step) * mean + np.sin(step) * tangent / step
        if np.linalg.norm(mean) > tol:
            mean = mean / np.linalg.norm(mean)
    return (mean * sum(norms) / len(norms)).reshape(xs[0].shape)


def largest(x, k):
    """True for the k largest float32 magnitudes; equal ones in the order of their place."""
    order = np.argsort(-np.abs(x.reshape(-1).astype(np.float32)), kind="stable")
    mask = np.zeros(x.size, dtype=bool)
    mask[order[:k]] = True
    return mask.reshape(x.shape)


def magnitude(d, i, p):
    n, density = d.size, p["density"][i]
    if density >= 1:
        return d
    return d * largest(d, 0 if density <= 0 else max(1, floor(density * n)))


def band(d, i, p):
    n, density = d.size, p["density"][i]
    if density >= 1:
        return d
    keep, top = floor(max(density, 0) * n), floor(p["gamma"][i] * n)
    start = max(0, n - keep - top)  # in ascending order
    return d * (largest(d, n - start) & ~largest(d, n - start - keep)) if keep else d * 0


def by_chance(d, i, p):
    if p["density"][i] >= 1:
        return d
    chance = float(np.float32(p["density"][i]))
    return d * (uniform(p["seed"], p["name"], i, 0, d.size) < chance).reshape(d.shape)


def by_rank(d, i, p):
    density, epsilon = p["density"][i], p["epsilon"][i]
    if density >= 1:
        return d
    if density <= 0:
        return d * 0
    rows = d.reshape(-1, d.shape[-1]) if d.ndim > 1 else d.reshape(1, -1)
    chance = np.empty(rows.shape)
    for row, c in zip(rows, chance, strict=True):
        order = np.argsort(np.abs(row.astype(np.float32)), kind="stable")
        c[order] = np.arange(len(row)) / (len(row) - 1) if len(row) > 1 else 0.5
    chance = (chance * (2 * epsilon) + (density - epsilon)).reshape(d.shape)
    kept = d * (uniform(p["seed"], p["name"], i, 0, d.size).reshape(d.shape) < chance)
    return (kept / chance).astype(d.dtype) if p["rescale"] and p["rescale_by"] == "density" else kept


def arithmetic(sparsify, elect):
    """The family of task arithmetic: sparsify each delta, perhaps rescale, weigh, perhaps elect a sign, sum."""

    def merge(xs, base, p):
        dtype, weighted = xs[0].dtype, []
        for i, d in enumerate(deltas(xs, base)):
            left = sparsify(d, i, p)
            if p.get("rescale"):
                if p.get("rescale_by", "l1") == "l1":
                    before, after = (np.abs(v).sum(dtype=np.float64) for v in (d, left))
                    factor = before / after if min(before, after) >= 1e-7 else 1.0
                else:
                    factor = 1 / p["density"][i] if sparsify is by_chance and p["density"][i] > 0 else 1.0
                left = left.astype(dtype if elect else np.float64) * (dtype.type(factor) if elect else factor)
            if elect:
                weighted.append(left.astype(dtype) * dtype.type(p["weight"][i]))
            else:
                weighted.append(left.astype(np.float64) * p["weight"][i])
        if elect:
            vote = weighted[0]
            for d in weighted[1:]:
                vote = vote + d
            sign = np.where(vote >= 0, 1, -1)
            kept = [np.sign(d) == sign for d in weighted]
        else:
            kept = [np.ones(d.shape, dtype=bool) for d in weighted]
        merged = sum(d.astype(np.float64) * k for d, k in zip(weighted, kept, strict=True))
        if p["normalize"]:
            share = sum(w * k.astype(np.float64) for w, k in zip(p["weight"], kept, strict=True))
            nothing = share == 0 if elect else np.abs(share) < 1e-8
            merged = merged / np.where(nothing, 1, share)
        return add_base(base, merged * p["lambda"])

    return merge


def sce(xs, base, p):
    dtype = xs[0].dtype
    stack = np.array(deltas(xs, base))
    if p["select_topk"] < 1:
        variance = stack.astype(np.float64).var(axis=0).astype(np.float32)
        stack = stack * largest(variance, floor(np.count_nonzero(variance) * p["select_topk"]))
    vote = stack[0]
    for d in stack[1:]:
        vote = (vote + d).astype(dtype)
    kept = np.sign(stack) == np.where(vote >= 0, 1, -1)
    a = np.array([(d.astype(np.float64) ** 2).mean() for d in stack])
    a = a / a.sum() if a.sum() >= 1e-6 else np.full(len(a), 1 / len(a))
    a = a.reshape(-1, *[1] * base.ndim)
    return add_base(base, (stack * a * kept).sum(0) / np.maximum((a * kept).sum(0), 1e-6))


def model_stock(xs, base, p):
    n, shape = len(xs), xs[0].shape
    rows = [
        np.atleast_1d(d).reshape(-1, shape[-1] if len(shape) > 1 and p["filter_wise"] else xs[0].size)
        for d in deltas(xs, base)
    ]
    merged = np.zeros(rows[0].shape)
    for r in range(len(merged)):
        d = [x[r].astype(np.float64) for x in rows]
        cosines = []
        for i in range(n):
            for j in range(i + 1, n):
                floor_ = max(np.linalg.norm(d[i]) * np.linalg.norm(d[j]), 1e-6)
                cosines.append(np.clip(d[i] @ d[j] / floor_, -1, 1))
        c = np.mean(cosines)
        t = 0.0 if abs(1 + (n - 1) * c) < 1e-6 else n * c / (1 + (n - 1) * c)
        merged[r] = t * sum(d) / n
    return add_base(base, merged.reshape(shape))


def nearswap(xs, base, p):
    x, b = wide([xs[0], base])
    w = np.clip(p["t"] / np.maximum(np.abs(x - b), 1e-6), 0, 1)
    return w * x + (1 - w) * b


def importance(x, base):
    """What arcee_fusion ranks entries by, and its threshold."""
    x, b = wide([np.atleast_1d(x), np.atleast_1d(base)])

    def softmax(v):
        e = np.exp(v - v.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True) + 1e-8

    q, r = softmax(x), softmax(b)
    score = np.abs(x - b) * (q * np.log(q / r)).sum(-1, keepdims=True)
    ranked = np.sort(score.reshape(-1))
    q1, q2, q3 = (ranked[floor(q * (x.size - 1))] for q in (0.25, 0.5, 0.75))
    return score, q2 + 1.5 * (q3 - q1)


def arcee_fusion(xs, base, p):
    score, threshold = importance(xs[0], base)
    return np.where(score.reshape(base.shape) >= threshold, xs[0], base).astype(np.float64)


def ram(xs, base, p, plus=False):
    ds = deltas(xs, base)
    active = np.array([np.abs(d) > d.dtype.type(p["epsilon"]) for d in ds])
    count = active.sum(0)
    merged = np.zeros(base.shape)
    for d, on in zip(wide(ds), active, strict=True):
        scale = 1.0
        if plus:
            shared, unique = (on & (count > 1)).sum(), (on & (count == 1)).sum()
            scale = 1 + p["r"] * np.clip(shared / max(unique, p["epsilon"], 1e-300), 0, p["alpha"])
        merged += d * on * np.where(count == 1, scale, 1 / np.maximum(count, 1))
    return add_base(base, merged)


def ramplus_tl(xs, base, p):
    return ram(xs, base, p, plus=True)


ORACLES = {
    "arcee_fusion": arcee_fusion,
    "breadcrumbs": arithmetic(band, elect=False),
    "breadcrumbs_ties": arithmetic(band, elect=True),
    "dare_linear": arithmetic(by_chance, elect=False),
    "dare_ties": arithmetic(by_chance, elect=True),
    "della": arithmetic(by_rank, elect=True),
    "della_linear": arithmetic(by_rank, elect=False),
    "karcher": karcher,
    "linear": linear,
    "model_stock": model_stock,
    "multislerp": multislerp,
    "nearswap": nearswap,
    "nuslerp": nuslerp,
    "passthrough": passthrough,
    "ram": ram,
    "ramplus_tl": ramplus_tl,
    "sce": sce,
    "slerp": slerp,
    "task_arithmetic": arithmetic(lambda d, i, p: d, elect=False),
    "ties": arithmetic(magnitude, elect=True),
}
