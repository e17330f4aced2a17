/* The loops that most of a merge's time is spent in, each in one pass over data that is in the cache.
 *
 * Every function does to each entry exactly what the PyTorch code in ops/ and compute.py does, in the same order and with
 * every operation rounded by itself (compile with -ffp-contract=off), so the results are the same bit for bit. The two
 * reductions, gram and l1, add in 16 lanes of doubles in a fixed order; they agree to the last place.
 *
 * No function allocates, keeps state, or reads or writes outside the arrays and files that it is given.
 */
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-tree-loop-distribution") /* it would work things out twice to store them in two loops */
#pragma GCC diagnostic ignored "-Wpsabi"          /* no vector leaves this file */
#endif
#if defined(__x86_64__) && defined(__linux__) && !defined(__clang__) && __GNUC__ >= 12 /* which can tell processors apart */
#include <immintrin.h>
#define LEVELS
#endif
#ifdef FAST /* given with CHOSEN of fused.c: for one kind of processor alone, as tests want it */
#elif defined(LEVELS)
#define FAST __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FAST
#endif
#define STRIP 960 /* entries that are taken through all steps at once: a few such arrays fit into the first cache */
#define LANES 16

enum { F32, BF16, F16 };

static inline float bits_to_float(uint32_t u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}

static inline uint32_t float_to_bits(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

/* out = x, or x - base; x in any dtype */
FAST void plait_widen(const void *x, int dtype, const float *restrict base, float *restrict out, int64_t n) {
    if (dtype == F32) {
        const float *in = x;
        if (base)
            for (int64_t i = 0; i < n; i++) out[i] = in[i] - base[i];
        else
            memcpy(out, in, (size_t)n * 4);
    } else if (dtype == BF16) {
        const uint16_t *in = x;
        if (base)
            for (int64_t i = 0; i < n; i++) out[i] = bits_to_float((uint32_t)in[i] << 16) - base[i];
        else
            for (int64_t i = 0; i < n; i++) out[i] = bits_to_float((uint32_t)in[i] << 16);
    } else {
        const _Float16 *in = x;
        if (base)
            for (int64_t i = 0; i < n; i++) out[i] = (float)in[i] - base[i];
        else
            for (int64_t i = 0; i < n; i++) out[i] = (float)in[i];
    }
}

/* out = x, or base + x, rounded to a dtype; returns 1 if all that was written is finite */
FAST int plait_narrow(const float *restrict x, const float *restrict base, void *out, int dtype, int64_t n) {
    uint32_t odd = 0;
    for (int64_t at = 0; at < n; at += STRIP) {
        int64_t m = n - at < STRIP ? n - at : STRIP;
        float strip[STRIP];
        if (base)
            for (int64_t i = 0; i < m; i++) strip[i] = base[at + i] + x[at + i];
        else
            memcpy(strip, x + at, (size_t)m * 4);
        if (dtype == F32) {
            memcpy((float *)out + at, strip, (size_t)m * 4);
            for (int64_t i = 0; i < m; i++) odd |= (float_to_bits(strip[i]) & 0x7F800000u) == 0x7F800000u;
        } else if (dtype == BF16) {
            uint16_t *to = (uint16_t *)out + at;
            for (int64_t i = 0; i < m; i++) {
                uint32_t u = float_to_bits(strip[i]);
                uint32_t rounded = (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16;
                uint32_t nan = (u & 0x7FFFFFFFu) > 0x7F800000u;
                rounded = nan ? 0x7FC0u : rounded;
                odd |= (rounded & 0x7F80u) == 0x7F80u;
                to[i] = (uint16_t)rounded;
            }
        } else {
            _Float16 *to = (_Float16 *)out + at;
            uint16_t *written = (uint16_t *)out + at;
            for (int64_t i = 0; i < m; i++) to[i] = (_Float16)strip[i];
            for (int64_t i = 0; i < m; i++) odd |= (written[i] & 0x7C00u) == 0x7C00u;
        }
    }
    return !odd;
}

/* out = sum of w[i] * x[i], added in order */
FAST void plait_weighted_sum(const float *const *xs, const float *w, int k, float *restrict out, int64_t n) {
    for (int64_t at = 0; at < n; at += STRIP) {
        int64_t m = n - at < STRIP ? n - at : STRIP;
        float *restrict to = out + at;
        const float *restrict x = xs[0] + at;
        float first = w[0];
        for (int64_t i = 0; i < m; i++) to[i] = x[i] * first;
        for (int j = 1; j < k; j++) {
            const float *restrict y = xs[j] + at;
            float weight = w[j];
            for (int64_t i = 0; i < m; i++) to[i] += y[i] * weight;
        }
    }
}

/* the weighted deltas that agree with the sign of their sum, added; see ops/combine.py */
FAST void plait_elected_sum(
    const float *const *deltas, const float *w, int k, int normalize, float scale, float *restrict out, int64_t n) {
    for (int64_t at = 0; at < n; at += STRIP) {
        int64_t m = n - at < STRIP ? n - at : STRIP;
        float sign[STRIP], merged[STRIP], share[STRIP];
        for (int64_t i = 0; i < m; i++) sign[i] = deltas[0][at + i] * w[0];
        for (int j = 1; j < k; j++) {
            const float *restrict d = deltas[j] + at;
            float weight = w[j];
            for (int64_t i = 0; i < m; i++) sign[i] += d[i] * weight;
        }
        for (int64_t i = 0; i < m; i++) {
            sign[i] = bits_to_float(0x3F800000u | ((uint32_t)!(sign[i] >= 0) << 31)); /* 1 or -1 */
            merged[i] = share[i] = 0;
        }
        for (int j = 0; j < k; j++) {
            const float *restrict d = deltas[j] + at;
            float weight = w[j];
            for (int64_t i = 0; i < m; i++) {
                float agrees = d[i] * weight * sign[i];
                uint32_t not_less = -(uint32_t)!(agrees < 0), more = -(uint32_t)(agrees > 0);
                merged[i] += bits_to_float(float_to_bits(agrees) & not_less);
                share[i] += bits_to_float(float_to_bits(weight) & more);
            }
        }
        if (normalize)
            for (int64_t i = 0; i < m; i++) merged[i] /= share[i] + (share[i] == 0 ? 1.0f : 0.0f);
        for (int64_t i = 0; i < m; i++) {
            float value = merged[i] * sign[i];
            out[at + i] = scale == 1 ? value : value * scale;
        }
    }
}

/* g[i * k + j] = <x_i, x_j> */
FAST void plait_gram(const float *const *xs, int k, int64_t n, double *g) {
    for (int a = 0; a < k; a++)
        for (int b = a; b < k; b++) {
            const float *restrict x = xs[a], *restrict y = xs[b];
            double lane[LANES] = {0};
            int64_t i = 0;
            for (; i + LANES <= n; i += LANES)
                for (int l = 0; l < LANES; l++) lane[l] += (double)x[i + l] * (double)y[i + l];
            for (int l = 0; i < n; i++, l++) lane[l] += (double)x[i] * (double)y[i];
            double sum = 0;
            for (int l = 0; l < LANES; l++) sum += lane[l];
            g[a * k + b] = g[b * k + a] = sum;
        }
}

/* the sum of |x| */
FAST double plait_l1(const float *restrict x, int64_t n) {
    double lane[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++) lane[l] += (double)fabsf(x[i + l]);
    for (int l = 0; i < n; i++, l++) lane[l] += (double)fabsf(x[i]);
    double sum = 0;
    for (int l = 0; l < LANES; l++) sum += lane[l];
    return sum;
}

static inline uint32_t scramble(uint32_t x) {
    x ^= x >> 16;
    x *= 0x21F0AAADu;
    x ^= x >> 15;
    x *= 0xD35A2D97u;
    x ^= x >> 15;
    return x;
}

#define SHARING (2 * LANES) /* entries in a row that share LANES words */

/* a number's bits, from the highest, for the entry `low`; see ops/random.py */
static inline uint32_t drawn(uint32_t low, uint32_t key1, uint32_t key2) {
    uint32_t word = scramble(scramble(low / SHARING * LANES + low % LANES + key1) + key2);
    return low & LANES ? word << 16 | word >> 16 : word;
}

/* for the entries low, low + 1, … */
static inline __attribute__((always_inline)) void draw(
    uint32_t key1, uint32_t key2, uint32_t low, uint32_t *restrict out, int64_t n) {
    int64_t i = 0;
    for (; i < n && (low + (uint32_t)i) % SHARING; i++) out[i] = drawn(low + (uint32_t)i, key1, key2);
    for (; i + SHARING <= n; i += SHARING) {
        uint32_t first = (low + (uint32_t)i) / 2 + key1;
        for (int l = 0; l < LANES; l++) {
            uint32_t word = scramble(scramble(first + (uint32_t)l) + key2);
            out[i + l] = word;
            out[i + l + LANES] = word << 16 | word >> 16;
        }
    }
    for (; i < n; i++) out[i] = drawn(low + (uint32_t)i, key1, key2);
}

/* random numbers in [0, 1) for the entries low, low + 1, …; see ops/random.py */
FAST void plait_uniform(uint32_t key1, uint32_t key2, uint32_t low, float *restrict out, int64_t n) {
    uint32_t bits[STRIP];
    for (int64_t at = 0; at < n; at += STRIP) {
        int64_t m = n - at < STRIP ? n - at : STRIP;
        draw(key1, key2, low + (uint32_t)at, bits, m);
        for (int64_t i = 0; i < m; i++) out[at + i] = (float)(int32_t)(bits[i] >> 8) * 0x1p-24f;
    }
}

/* counts[upper 15 bits of |x|] += 1 */
void plait_high(const float *restrict x, int64_t n, int64_t *restrict counts) {
    for (int64_t i = 0; i < n; i++) counts[(float_to_bits(x[i]) & 0x7FFFFFFFu) >> 16]++;
}

/* counts[lower 16 bits of |x|] += 1 where the upper 15 are `bin` */
void plait_low(const float *restrict x, int64_t n, uint32_t bin, int64_t *restrict counts) {
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits = float_to_bits(x[i]) & 0x7FFFFFFFu;
        if (bits >> 16 == bin) counts[bits & 0xFFFFu]++;
    }
}

/* how many |x| equal `value` */
FAST int64_t plait_count(const float *restrict x, int64_t n, float value) {
    int64_t found = 0;
    for (int64_t at = 0; at < n; at += STRIP) {
        int64_t m = n - at < STRIP ? n - at : STRIP;
        int32_t strip = 0;
        for (int64_t i = 0; i < m; i++) strip += fabsf(x[at + i]) == value;
        found += strip;
    }
    return found;
}

/* out = x times 1 where |x| > value, or |x| == value in the first `equals` entries; times 0 elsewhere */
FAST void plait_keep(const float *restrict x, int64_t n, int64_t equals, float value, float *restrict out) {
    for (int64_t i = 0; i < equals; i++) out[i] = x[i] * (fabsf(x[i]) >= value ? 1.0f : 0.0f);
    for (int64_t i = equals; i < n; i++) out[i] = x[i] * (fabsf(x[i]) > value ? 1.0f : 0.0f);
}

/* out = x times 1 where u < density, times 0 elsewhere */
FAST void plait_drop(const float *restrict x, const float *restrict u, int64_t n, float density, float *restrict out) {
    for (int64_t i = 0; i < n; i++) out[i] = x[i] * (u[i] < density ? 1.0f : 0.0f);
}

#include "ahead.c"
#include "fused.c"
