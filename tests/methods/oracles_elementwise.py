"""The newer elementwise methods once more: slow, plain numpy in float64, from the papers, per tensor as the methods' pages say.

Nothing here imports `plait`. A method is a function of (inputs, base, parameters). What decides between entries is rounded to
the inputs' dtype (ranks: to float32), as it is part of the definition; everything else is float64.
"""

from __future__ import annotations

from math import ceil, floor, inf

import numpy as np

from methods.oracles import add_base, deltas, largest, wide


def consensus_ta(xs, base, p):
    dtype = base.dtype.type
    parts = [d * dtype(w) for d, w in zip(deltas(xs, base), p["weight"], strict=True)]
    total = parts[0]
    for d in parts[1:]:
        total = total + d
    votes = sum((np.abs(d) >= np.abs(total - d) * dtype(p["threshold"])).astype(int) for d in parts)
    kept = votes >= min(p["agreement"], len(xs))
    return add_base(base, p["lambda"] * kept * sum(wide(parts)))


def emr(xs, base, p):
    ds = deltas(xs, base)
    vote = ds[0]
    for d in ds[1:]:
        vote = vote + d
    sign = np.where(vote >= 0, 1.0, -1.0)
    size = np.max([np.where(d * sign > 0, np.abs(d), 0.0) for d in wide(ds)], axis=0)
    return add_base(base, p["lambda"] * sign * size)


def metagpt(xs, base, p):
    ds = wide(deltas(xs, base))
    squares = [np.square(d).sum() for d in ds]
    weights = [s / (sum(squares) or 1) for s in squares]
    return add_base(base, p["lambda"] * sum(w * d for w, d in zip(weights, ds, strict=True)))


def cabs(xs, base, p):
    merged, taken = np.zeros(base.shape), np.zeros(base.shape, dtype=bool)
    columns = base.shape[-1] if base.ndim > 1 else base.size
    for i, d in enumerate(deltas(xs, base)):
        n, m = p["keep"][i], p["block"][i]
        rows, sums, used = (x.reshape(-1, columns) for x in (d, merged, taken))
        for r in range(len(rows)):
            for start in range(0, columns, m):
                block = range(start, min(start + m, columns))
                free = [c for c in block if not used[r, c] and rows[r, c] != 0]
                for c in sorted(free, key=lambda c: (-abs(rows[r, c]), c))[: ceil(n * len(block) / m)]:
                    sums[r, c] = p["weight"][i] * float(rows[r, c])
                    used[r, c] = True
    return add_base(base, p["lambda"] * merged)


def pcb(xs, base, p):
    ds, n = deltas(xs, base), base.size
    whole = sum(wide(ds))
    top, bottom = np.zeros(base.shape), np.zeros(base.shape)
    for i, d in enumerate(ds):
        ranked = np.sort(np.abs(d.astype(np.float32)).reshape(-1))[::-1].astype(np.float64)
        height = ranked[floor(p["clip"] * n)] if n > 1 else inf
        d = np.clip(d.astype(np.float64), -height, height)
        intra = np.exp(len(xs) * ((np.abs(d) / max(height, 1e-38)) ** 2 - 1))
        score = (intra * np.maximum(np.tanh(whole * deltas(xs, base)[i]), 0)).astype(base.dtype)
        keep = max(1, floor(p["density"][i] * n)) if p["density"][i] > 0 else 0
        kept = score * largest(score, keep) if keep < n else score
        most = np.float32(score.max()) if n > 1 else 1.0
        share = kept.astype(np.float64) / (float(most) if most > 0 else 1.0)
        top += p["weight"][i] * share * d
        bottom += share
    return add_base(base, p["lambda"] * top / np.where(bottom == 0, 1, bottom))


def lines(layer, count, alpha, beta):
    """The straight line through alpha at the first layer and alpha + beta at the last."""
    return np.linspace(alpha, alpha + beta, count)[layer]


def norm_guard(merged, taus, weights, strength):
    w = np.abs(np.array(weights))
    wanted = np.average([np.linalg.norm(t) for t in taus], weights=w)
    return (1 - strength) * merged + strength * wanted * merged / np.linalg.norm(merged)


ORACLES = {"cabs": cabs, "consensus_ta": consensus_ta, "emr": emr, "metagpt": metagpt, "pcb": pcb}
