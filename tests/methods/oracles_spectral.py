"""The spectral and closed-form methods once more: slow, plain numpy in float64, from the papers, with whole decompositions.

Nothing here imports `plait`. A method is a function of (inputs, base, parameters). What the papers leave open (matrices without
full rank, differences of zero) is as the methods' pages say.
"""

from __future__ import annotations

from math import ceil, floor

import numpy as np

ZERO = 1e-6  # singular values up to this share of the largest are none


def svd(x, floor=0.0):
    """All singular triplets but those that are zero: u [m, k], s [k], v [n, k]."""
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    k = int((s > max(floor, ZERO * s.max(initial=0))).sum())
    return u[:, :k], s[:k], vt[:k].T


def polar(x):
    u, _, v = svd(x)
    return u @ v.T


def wide(deltas):
    return [d.astype(np.float64) for d in deltas]


def each_matrix(merge, shares, base=True):
    """The method of a function on matrices: (matrices, base or None, parameters) -> merged; shares(p, n) for everything else."""

    def method(xs, w0, p):
        xs = wide(xs if not base else [(x - w0).astype(x.dtype) for x in xs])
        if xs[0].ndim in (2, 3) and min(xs[0].shape[-2:]) > 1:
            w = None if w0 is None else w0.astype(np.float64)
            if xs[0].ndim == 2:
                merged = merge(xs, w, p)
            else:
                merged = np.array(
                    [merge([x[i] for x in xs], None if w is None else w[i], p) for i in range(len(xs[0]))]
                )
        else:
            merged = sum(s * x for s, x in zip(shares(p, len(xs)), xs, strict=True))
        return merged + w0.astype(np.float64) if base else merged

    return method


def mean(p, n):
    """lambda times the mean of the differences, each times its weight."""
    return [p["lambda"] * w / n for w in p.get("weight", [1.0] * n)]


def relative(p, n):
    return [w / (sum(p["weight"]) or 1.0) for w in p["weight"]]


def tsv_m(taus, _, p):
    r, n = min(taus[0].shape), len(taus)
    k = max(1, floor(r / n))
    parts = [tuple(x[..., :k] for x in svd(w * t)) for w, t in zip(p["weight"], taus, strict=True)]
    u, s, v = (np.concatenate(x, axis=-1) for x in zip(*parts, strict=True))
    return p["lambda"] * polar(u) @ np.diag(s) @ polar(v).T


def iso_c(taus, _, p):
    u, s, v = svd(sum(w * t for w, t in zip(p["weight"], taus, strict=True)))
    return p["lambda"] * (s.mean() if len(s) else 0) * u @ v.T


def iso_cts(taus, _, p):
    r, n = min(taus[0].shape), len(taus)
    taus = [w * t for w, t in zip(p["weight"], taus, strict=True)]
    own = round((r - floor(p["common"] * r)) / n)
    shared = tuple(x[..., : max(0, r - own * n)] for x in svd(sum(taus)))
    projector = np.eye(len(taus[0])) - shared[0] @ shared[0].T
    parts = [shared]
    for t in taus:
        parts.append(tuple(x[..., :own] for x in svd(projector @ t, floor=ZERO * np.linalg.norm(t))))
    u, s, v = (np.concatenate(x, axis=-1) for x in zip(*parts, strict=True))
    return p["lambda"] * (s.mean() if len(s) else 0) * polar(u) @ polar(v).T


def inverse(c, ridge):
    """Of a covariance, after a share of the mean of its diagonal is added to it; without one, on what it spans."""
    r = ridge * np.trace(c) / len(c)
    return np.linalg.inv(c + r * np.eye(len(c))) if r else np.linalg.pinv(c, rcond=1e-12, hermitian=True)


def wudi(taus, _, p):
    columns = taus[0].shape[1]
    start = sum(w * t for w, t in zip(p["weight"], taus, strict=True))
    c, d = np.zeros((columns, columns)), np.zeros(taus[0].shape)
    for w, t in zip(p["weight"], taus, strict=True):
        if t.any():
            g = t.T @ t / (t**2).sum()
            c, d = c + w * g, d + w * t @ g
    if p["solver"] == "ridge":
        return p["lambda"] * d @ inverse(c, p["ridge"])
    values, vectors = np.linalg.eigh(c)
    merged = start.copy()
    for j in range(columns):  # ascending
        if j >= columns - ceil(p["keep"] * columns) and values[j] > 1e-12 * values[-1]:
            v = vectors[:, j]
            gone = 1 - np.exp(-values[j] * p["time"])
            merged += gone * np.outer(d @ v / values[j] - start @ v, v)
    return p["lambda"] * merged


def actmat(taus, _, p):
    shares = relative(p, len(taus))
    c = sum(s * t.T @ t for s, t in zip(shares, taus, strict=True))
    d = sum(s * t @ t.T @ t for s, t in zip(shares, taus, strict=True))
    return p["lambda"] * d @ inverse(c, p["ridge"])


def ace(taus, _, p):
    rows, columns = taus[0].shape
    taus = [t for t in taus if t.any()]
    if not taus:
        return np.zeros((rows, columns))
    logs = np.log([(t**2).sum() for t in taus])
    heterogeneous = len(taus) > 1 and logs.var(ddof=1) / logs.mean() ** 2 > p["threshold"]
    estimates, regular = [], []
    for t in taus:
        e = (t - t.mean(0)).T @ (t - t.mean(0))
        unit = np.trace(e) if heterogeneous and e.any() else 1.0
        estimates.append(e / unit)
        regular.append((e + max(p["ridge"], 1e-12 * np.trace(e)) * np.eye(columns)) / unit)
    prior = np.outer(np.ones(columns), sum(estimates).mean(0))
    merged = sum(t @ r for t, r in zip(taus, regular, strict=True)) @ np.linalg.inv(sum(regular) + prior)
    if heterogeneous:
        middle = sum(regular) / len(taus)
        u, s, v = svd(merged + sum(t @ (e - middle) for t, e in zip(taus, estimates, strict=True)))
        k = floor(p["share"] * min(rows, columns))
        if k:
            merged = merged + s[:k].mean() * u[:, :k] @ v[:, :k].T
    return p["lambda"] * merged


def cart(xs, _, p):
    shares = relative(p, len(xs))
    average = sum(s * x for s, x in zip(shares, xs, strict=True))
    merged = average.copy()
    for share, x in zip(shares, xs, strict=True):
        u, s, v = svd(x - average)
        k = ceil(p["rank"] * min(x.shape))
        merged += p["lambda"] * len(xs) * share * u[:, :k] @ np.diag(s[:k]) @ v[:, :k].T
    return merged


def ortho_merge(taus, base, p):
    """Turns the rows' side of the base where it is the smaller one, by transposing everything."""
    if base.shape[0] < base.shape[1]:
        return ortho_merge([t.T for t in taus], base.T, p).T
    n = base.shape[1]
    shares, one = relative(p, len(taus)), np.eye(n)
    turns, forms = [], []
    for t in taus:
        x = base.T @ (base + t)
        u, _, vt = np.linalg.svd(x + 1e-13 * (np.linalg.norm(x) or 1.0) * one)
        u[:, -1] *= np.sign(np.linalg.det(u @ vt))
        turns.append(u @ vt if t.any() else one)
        forms.append(np.linalg.inv(turns[-1] + one) @ (turns[-1] - one))
    q = sum(s * f for s, f in zip(shares, forms, strict=True))
    if np.linalg.norm(q) > 1e-8:
        q = q * sum(s * np.linalg.norm(f) for s, f in zip(shares, forms, strict=True)) / np.linalg.norm(q)
    turned = base @ np.linalg.inv(one - q) @ (one + q)
    return (
        turned
        - base
        + p["lambda"] * sum(s * (base + t - base @ r) for s, t, r in zip(shares, taus, turns, strict=True))
    )


ORACLES = {
    "ace": each_matrix(ace, mean),
    "actmat": each_matrix(actmat, lambda p, n: [p["lambda"] * s for s in relative(p, n)]),
    "cart": each_matrix(cart, relative, base=False),
    "iso_c": each_matrix(iso_c, mean),
    "iso_cts": each_matrix(iso_cts, mean),
    "ortho_merge": each_matrix(ortho_merge, relative),
    "tsv_m": each_matrix(tsv_m, mean),
    "wudi": each_matrix(wudi, mean),
}


def star(delta, eta):
    u, s, vt = np.linalg.svd(delta, full_matrices=False)
    running = np.cumsum(s)
    k = int(np.argmax(running >= eta * running[-1])) + 1
    return s.sum() / s[:k].sum() * u[:, :k] @ np.diag(s[:k]) @ vt[:k]


def subspace_boost(delta, beta):
    u, s, vt = np.linalg.svd(delta, full_matrices=False)
    cut = s[int(np.argmax(np.cumsum(s) / s.sum() >= beta))]
    return u @ np.diag(np.maximum(s, cut)) @ vt


def svc(merged, deltas, alpha):
    u, s, vt = np.linalg.svd(merged, full_matrices=False)
    for r in range(len(s)):
        a = u[:, r] @ merged
        parts = [u[:, r] @ d for d in deltas]
        s[r] *= len(deltas) / sum(max(alpha, a @ part / (part @ part)) for part in parts)
    return u @ np.diag(s) @ vt
