/* A merge of pieces as they lie in the files: inputs are widened, made deltas, thinned out, merged and rounded strip by strip,
 * so that nothing between the stored bytes of the inputs and those of the output leaves the first cache. Inputs that lie in
 * files are read window by window, which stay in the second.
 *
 * Included by kernels.c. What is done to an entry is what the functions there, and the PyTorch code in ops/, do to it.
 */
#define MOST 16             /* inputs */
#define WINDOWS (768 * STRIP) /* bytes of all inputs that are read at once: they stay in the second cache */
#define STAGES 3 /* of an input */
#define WORD 32  /* bits */
#define INLINE static inline __attribute__((always_inline))

enum { KEEP, CUT, DROP, SCALE, MASK };
#define LANE 16 /* entries whose bits lie side by side in words of their own; the next LANE have the words' next bits, from the highest */
typedef struct {
    int64_t count, _[7];                   /* entries of the tensor, from the first on, of which is known if they are kept */
    uint32_t words[][LANE];                /* one for WORD * LANE entries */
} Drawn;
typedef struct {
    int32_t kind;
    float value;                 /* KEEP and CUT: a magnitude; DROP: the density; SCALE: the factor */
    int64_t *left;               /* KEEP and CUT: how many entries of that magnitude are still kept; counted down */
    const uint8_t *mask;         /* MASK: 1 for what is kept */
    uint32_t key1, key2, low, _; /* DROP: keys, and the first entry's number */
    Drawn *drawn;                /* DROP: what is remembered for the next pass, or null */
} Stage;
typedef struct {
    char *data;          /* the first entry; of what is in a file, room for a window */
    int64_t offset;      /* of the first entry in the file */
    int32_t file, dtype; /* file -1: in memory */
} Source;
typedef struct {
    Source source;
    int32_t stages, _;
    Stage stage[STAGES];
} Input;
typedef struct {
    Source base; /* what is taken away from each input; no dtype for none */
    const Input *inputs;
    int64_t *left; /* where entries are chosen by their variance over the inputs: as in a stage; else null */
    int32_t count;
    float value;
    int32_t failed, error; /* which input could not be read, -1 for the base, and why: errno, 0 where the file ended */
} Group;
typedef struct {
    const char *base, *data[MOST]; /* where the first entry would be, were all of the piece in memory */
} Window;
typedef struct {
    int64_t above;    /* magnitudes whose bits are at least low + span */
    int64_t zeros;    /* magnitudes of 0 */
    uint32_t *counts; /* the others from `low` on, by (bits - low) >> shift */
    uint32_t low, span;
    int32_t shift, input; /* -1: the variance over all inputs */
} Bracket;

/* out = x, or x - base, in one pass */
#define TAKE(type, value)                                                  \
    do {                                                                   \
        const type *in = (const type *)data + at;                          \
        if (base)                                                          \
            for (int64_t i = 0; i < m; i++) out[i] = (value) - base[i];    \
        else                                                               \
            for (int64_t i = 0; i < m; i++) out[i] = (value);              \
    } while (0)

INLINE void take(const void *data, int dtype, const float *restrict base, int64_t at, int64_t m, float *restrict out) {
    if (dtype == F32)
        TAKE(float, in[i]);
    else if (dtype == BF16)
        TAKE(uint16_t, bits_to_float((uint32_t)in[i] << 16));
    else
        TAKE(_Float16, (float)in[i]);
}

/* turns x into 1 where it is above the cutoff, 0 elsewhere; or 0 and 1. With `times`, multiplies x by that instead */
INLINE void cut(float *x, int64_t m, float value, int64_t *left, int inverse, int times) {
    float yes = inverse ? 0.0f : 1.0f, no = 1.0f - yes;
    int32_t equal = 0;
    if (*left > 0)
        for (int64_t i = 0; i < m; i++) equal += fabsf(x[i]) == value;
    if (equal == 0)
        for (int64_t i = 0; i < m; i++) x[i] = (times ? x[i] : 1.0f) * (fabsf(x[i]) > value ? yes : no);
    else if (equal <= *left) {
        for (int64_t i = 0; i < m; i++) x[i] = (times ? x[i] : 1.0f) * (fabsf(x[i]) >= value ? yes : no);
        *left -= equal;
    } else
        for (int64_t i = 0; i < m; i++) {
            float magnitude = fabsf(x[i]);
            int above = magnitude > value || (magnitude == value && *left > 0 && (*left)-- > 0);
            x[i] = (times ? x[i] : 1.0f) * (above ? yes : no);
        }
}

#define BYTES 16
#define LEVEL
#define NAMED(name) name##_16
#include "vectors.c"

#ifdef LEVELS
#define BYTES 32
#define LEVEL __attribute__((target("arch=x86-64-v3")))
#define NAMED(name) name##_32
#include "vectors.c"

#define BYTES 64
#define LEVEL __attribute__((target("arch=x86-64-v4")))
#define NAMED(name) name##_64
#include "vectors.c"
#endif

#define IS(level) __builtin_cpu_supports("x86-64-" level)
#ifdef CHOSEN
#elif defined(LEVELS)
#define CHOSEN(name) (IS("v4") ? name##_64 : IS("v3") ? name##_32 : name##_16)
#else
#define CHOSEN(name) name##_16
#endif

/* `scale` is that of a SCALE which follows; only DROP takes it over */
INLINE void stage(const Stage *s, float scale, float *restrict x, int64_t at, int64_t m) {
    if (s->kind == KEEP) {
        cut(x, m, s->value, s->left, 0, 1);
    } else if (s->kind == CUT) {
        cut(x, m, s->value, s->left, 1, 1);
    } else if (s->kind == SCALE) {
        float factor = s->value;
        for (int64_t i = 0; i < m; i++) x[i] *= factor;
    } else if (s->kind == MASK) {
        const uint8_t *mask = s->mask + at;
        for (int64_t i = 0; i < m; i++) x[i] *= (float)mask[i];
    } else
        CHOSEN(drop)(s, scale, x, at, m);
}

#define SIZE(dtype) ((dtype) == F32 ? 4 : 2)

/* entries [at, at + m) of an input; 0, or -1 for one that ended, or errno */
static int bring(const Source *s, int64_t at, int64_t m, const char **data) {
    int64_t size = SIZE(s->dtype), done = 0, all = m * size;
    *data = s->data;
    if (s->file < 0) return 0;
    while (done < all) {
        ssize_t got = pread(s->file, s->data + done, (size_t)(all - done), (off_t)(s->offset + at * size + done));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return got ? errno : -1;
        done += got;
    }
    *data = (const char *)((uintptr_t)s->data - (uintptr_t)(at * size));
    return 0;
}

/* brings the entries of all inputs from `at` on; returns where they end, `stop` at most, or 0 for a failure. Where it ends before
 * that, it does after whole STRIPs of a block. */
static int64_t look(Group *g, Window *w, int64_t at, int64_t stop, int64_t block) {
    int64_t size = g->base.dtype < 0 ? 0 : SIZE(g->base.dtype);
    for (int j = 0; j < g->count; j++) size += SIZE(g->inputs[j].source.dtype);
    int64_t end = at + WINDOWS / size;
    end = stop <= end ? stop : end - end % block % STRIP;
    int error = 0;
    w->base = 0;
    if (g->base.dtype >= 0) {
        g->failed = -1;
        error = bring(&g->base, at, end - at, &w->base);
    }
    for (int j = 0; j < g->count && !error; j++) {
        g->failed = j;
        error = bring(&g->inputs[j].source, at, end - at, &w->data[j]);
    }
    g->error = error < 0 ? 0 : error;
    return error ? 0 : end;
}

INLINE void bottom(const Group *g, const Window *w, int64_t at, int64_t m, float *restrict base) {
    if (w->base) take(w->base, g->base.dtype, 0, at, m, base);
}

INLINE void bare(const Group *g, const Window *w, int j, const float *base, int64_t at, int64_t m, float *restrict out) {
    if (w->base)
        take(w->data[j], g->inputs[j].source.dtype, base, at, m, out);
    else
        take(w->data[j], g->inputs[j].source.dtype, 0, at, m, out);
}

INLINE void staged(const Group *g, int j, int64_t at, int64_t m, float *restrict x) {
    const Input *in = g->inputs + j;
    for (int s = 0; s < in->stages; s++) {
        const Stage *own = in->stage + s;
        int both = own->kind == DROP && s + 1 < in->stages && own[1].kind == SCALE;
        stage(own, both ? own[1].value : 1.0f, x, at, m);
        s += both;
    }
}

/* A loop over entries whose inner loops over the inputs are unrolled for the usual numbers of inputs: all stays in registers. */
#define FOR_COUNT(k, body)              \
    switch (k) {                        \
    case 1: body(1); break;             \
    case 2: body(2); break;             \
    case 3: body(3); break;             \
    case 4: body(4); break;             \
    default: body(k);                   \
    }

/* over the inputs; 0 exactly where all are equal */
INLINE void variance_of(int k, float (*x)[STRIP], int64_t m, float *restrict out) {
    double models = k;
    for (int64_t i = 0; i < m; i++) {
        double mean = 0;
        for (int j = 1; j < k; j++) mean += (double)x[j][i] - (double)x[0][i];
        mean /= models;
        double sum = mean * mean;
        for (int j = 1; j < k; j++) {
            double d = (double)x[j][i] - (double)x[0][i] - mean;
            sum += d * d;
        }
        out[i] = (float)(sum / models);
    }
}

INLINE void variance(int k, float (*x)[STRIP], int64_t m, float *restrict out) {
#define BODY(k) variance_of(k, x, m, out)
    FOR_COUNT(k, BODY)
#undef BODY
}

/* all inputs, as they take part */
INLINE void gather(const Group *g, const Window *w, int64_t at, int64_t m, float *base, float (*x)[STRIP]) {
    bottom(g, w, at, m, base);
    for (int j = 0; j < g->count; j++) {
        bare(g, w, j, base, at, m, x[j]);
        staged(g, j, at, m, x[j]);
    }
    if (g->left) {
        float chosen[STRIP];
        variance(g->count, x, m, chosen);
        cut(chosen, m, g->value, g->left, 0, 0);
        for (int j = 0; j < g->count; j++)
            for (int64_t i = 0; i < m; i++) x[j][i] *= chosen[i];
    }
}

INLINE int put(const float *restrict x, void *out, int dtype, int64_t at, int64_t m) {
    uint32_t odd = 0;
    if (dtype == F32) {
        memcpy((float *)out + at, x, (size_t)m * 4);
        for (int64_t i = 0; i < m; i++) odd |= (float_to_bits(x[i]) & 0x7F800000u) == 0x7F800000u;
    } else if (dtype == BF16) {
        uint16_t *to = (uint16_t *)out + at;
        for (int64_t i = 0; i < m; i++) {
            uint32_t u = float_to_bits(x[i]);
            uint32_t rounded = (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16;
            rounded = (u & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded;
            odd |= (rounded & 0x7F80u) == 0x7F80u;
            to[i] = (uint16_t)rounded;
        }
    } else {
        _Float16 *to = (_Float16 *)out + at;
        uint16_t *written = (uint16_t *)out + at;
        for (int64_t i = 0; i < m; i++) to[i] = (_Float16)x[i];
        for (int64_t i = 0; i < m; i++) odd |= (written[i] & 0x7C00u) == 0x7C00u;
    }
    return !odd;
}

INLINE void sum_of(int k, float (*x)[STRIP], const float *w, int64_t m, float *restrict out) {
    for (int64_t i = 0; i < m; i++) {
        float total = x[0][i] * w[0];
        for (int j = 1; j < k; j++) total += x[j][i] * w[j];
        out[i] = total;
    }
}

/* 1 or -1, as `x` has it; 0 counts as 1 */
INLINE float sign_of(float x) { return bits_to_float(0x3F800000u | ((uint32_t)!(x >= 0) << 31)); }

/* x unless it is negative; 0 then */
INLINE float not_less(float x) { return bits_to_float(float_to_bits(x) & -(uint32_t)!(x < 0)); }

/* weight where x is positive, 0 elsewhere */
INLINE float share_of(float weight, float x) { return bits_to_float(float_to_bits(weight) & -(uint32_t)(x > 0)); }

INLINE void elect_of(int k, int normalize, float (*x)[STRIP], const float *w, int64_t m, float *restrict out) {
    for (int64_t i = 0; i < m; i++) {
        float total = x[0][i] * w[0];
        for (int j = 1; j < k; j++) total += x[j][i] * w[j];
        float sign = sign_of(total), merged = 0, share = 0;
        for (int j = 0; j < k; j++) {
            float agrees = x[j][i] * w[j] * sign;
            merged += not_less(agrees);
            if (normalize) share += share_of(w[j], agrees);
        }
        if (normalize) merged /= share + (share == 0 ? 1.0f : 0.0f);
        out[i] = merged * sign;
    }
}

/* the sign of the plain sum; a mean of the magnitudes that have it, weighted by w */
INLINE void agree_of(int k, float (*x)[STRIP], const float *w, int64_t m, float *restrict out) {
    for (int64_t i = 0; i < m; i++) {
        float total = x[0][i];
        for (int j = 1; j < k; j++) total += x[j][i];
        float sign = sign_of(total), merged = 0, share = 0;
        for (int j = 0; j < k; j++) {
            float agrees = x[j][i] * sign;
            merged += not_less(agrees) * w[j];
            share += share_of(w[j], agrees);
        }
        out[i] = merged / (share < 1e-6f ? 1e-6f : share) * sign;
    }
}

INLINE void sum(int k, float (*x)[STRIP], const float *w, int64_t m, float *restrict out) {
#define BODY(k) sum_of(k, x, w, m, out)
    FOR_COUNT(k, BODY)
#undef BODY
}

INLINE void elect(int k, float (*x)[STRIP], const float *w, int normalize, float scale, int64_t m, float *restrict out) {
#define BODY(k) normalize ? elect_of(k, 1, x, w, m, out) : elect_of(k, 0, x, w, m, out)
    FOR_COUNT(k, BODY)
#undef BODY
    if (scale != 1)
        for (int64_t i = 0; i < m; i++) out[i] *= scale;
}

INLINE void agree(int k, float (*x)[STRIP], const float *w, int64_t m, float *restrict out) {
#define BODY(k) agree_of(k, x, w, m, out)
    FOR_COUNT(k, BODY)
#undef BODY
}

enum { SUM, ELECT, AGREE };

INLINE float bf16(const char *data, int64_t i) { return bits_to_float((uint32_t)((const uint16_t *)data)[i] << 16); }

/* What `gather` and `sum` make of BF16 without stages, plus the base if `add`: all of it stays in registers. */
INLINE void direct_of(
    int k, int less, int add, const Window *v, const float *w, int64_t at, int64_t m, float *restrict out) {
    for (int64_t i = 0; i < m; i++) {
        float base = less ? bf16(v->base, at + i) : 0, total = 0;
        for (int j = 0; j < k; j++) {
            float x = bf16(v->data[j], at + i);
            x = (less ? x - base : x) * w[j];
            total = j ? total + x : x;
        }
        out[i] = add ? base + total : total;
    }
}

INLINE void direct(int k, int less, int add, const Window *v, const float *w, int64_t at, int64_t m, float *restrict out) {
#define BODY(k)                                                 \
    less && add ? direct_of(k, 1, 1, v, w, at, m, out)          \
        : less  ? direct_of(k, 1, 0, v, w, at, m, out)          \
                : direct_of(k, 0, 0, v, w, at, m, out)
    FOR_COUNT(k, BODY)
#undef BODY
}

/* whether all is BF16 and has no stages, as it is mostly */
static int simple(const Group *g) {
    int found = !g->left && (g->base.dtype < 0 || g->base.dtype == BF16);
    for (int j = 0; j < g->count; j++) found &= !g->inputs[j].stages && g->inputs[j].source.dtype == BF16;
    return found;
}

/* the merged entries, plus the base if `add`, rounded to a dtype; returns 1 if all that was written is finite, -1 if an input
 * cannot be read */
FAST int plait_merge(
    Group *g, int how, const float *w, int normalize, float scale, int add, void *out, int dtype, int64_t n) {
    float x[MOST][STRIP], base[STRIP], merged[STRIP];
    Window window;
    int finite = 1, plain = how == SUM && g->count <= 4 && simple(g);
    for (int64_t at = 0, end = 0, m; at < n; at += m) {
        if (at == end && !(end = look(g, &window, at, n, n))) return -1;
        m = end - at < STRIP ? end - at : STRIP;
        if (plain) {
            direct(g->count, g->base.dtype >= 0, add, &window, w, at, m, merged);
            finite &= put(merged, out, dtype, at, m);
            continue;
        }
        gather(g, &window, at, m, base, x);
        if (how == SUM)
            sum(g->count, x, w, m, merged);
        else if (how == ELECT)
            elect(g->count, x, w, normalize, scale, m, merged);
        else
            agree(g->count, x, w, m, merged);
        if (add)
            for (int64_t i = 0; i < m; i++) merged[i] = base[i] + merged[i];
        finite &= put(merged, out, dtype, at, m);
    }
    return finite;
}

/* whether entries that are copied are all finite */
FAST int plait_finite(const void *x, int dtype, int64_t n) {
    uint32_t odd = 0;
    if (dtype == F32)
        for (int64_t i = 0; i < n; i++) odd |= (((const uint32_t *)x)[i] & 0x7F800000u) == 0x7F800000u;
    else {
        uint16_t exponent = dtype == BF16 ? 0x7F80 : 0x7C00;
        for (int64_t i = 0; i < n; i++) odd |= (((const uint16_t *)x)[i] & exponent) == exponent;
    }
    return !odd;
}

typedef void Add(int k, float (*x)[STRIP], int64_t m, double (*lane)[LANES]);

/* whole LANES of entries, what is added being 0 */
INLINE int64_t padded(int k, float (*x)[STRIP], int64_t m) {
    for (; m % LANES; m++)
        for (int j = 0; j < k; j++) x[j][m] = 0;
    return m;
}

enum { PRODUCTS, LENGTHS, SQUARES };

/* for each block of entries, `width` numbers into out: the inner products of inputs a <= b, row by row (k (k + 1) / 2);
 * or the L1 norms of all inputs before their stages and then of all after them (2 k); or the sums of squares (k). Returns -1
 * if an input cannot be read, as what follows does too */
FAST int plait_sums(Group *g, int kind, int64_t n, int64_t block, double *out) {
    float x[MOST][STRIP], base[STRIP];
    Window window;
    double lane[MOST * (MOST + 1) / 2][LANES] __attribute__((aligned(8 * LANES)));
    Add *add = kind == PRODUCTS ? CHOSEN(products) : kind == SQUARES ? CHOSEN(squares) : CHOSEN(lengths);
    int k = g->count, width = kind == PRODUCTS ? k * (k + 1) / 2 : kind == LENGTHS ? 2 * k : k;
    for (int64_t begin = 0, stop = 0; begin < n; begin += block, out += width) {
        int64_t end = n - begin < block ? n : begin + block;
        memset(lane, 0, (size_t)width * sizeof lane[0]);
        for (int64_t at = begin, m; at < end; at += m) {
            if (at == stop && !(stop = look(g, &window, at, n, block))) return -1;
            m = end - at < STRIP ? end - at : STRIP;
            m = stop - at < m ? stop - at : m;
            if (kind != LENGTHS) {
                gather(g, &window, at, m, base, x);
                add(k, x, padded(k, x, m), lane);
                continue;
            }
            bottom(g, &window, at, m, base);
            for (int j = 0; j < k; j++) {
                bare(g, &window, j, base, at, m, x[0]);
                add(1, x, padded(1, x, m), lane + j);
                if (!g->inputs[j].stages) continue;
                staged(g, j, at, m, x[0]);
                add(1, x, padded(1, x, m), lane + k + j);
            }
        }
        for (int c = 0; c < width; c++) {
            double total = 0;
            for (int l = 0; l < LANES; l++) total += lane[c][l];
            out[c] = total;
        }
        if (kind == LENGTHS)
            for (int j = 0; j < k; j++)
                if (!g->inputs[j].stages) out[k + j] = out[j];
    }
    return 0;
}

INLINE int32_t magnitude_of(float x) { return (int32_t)(float_to_bits(x) & 0x7FFFFFFFu); }

/* where the bits of `m` WORDs are that are set, and how many: mostly two of a WORD at most, which takes no branch. `places` has room
 * for two more. */
INLINE int32_t places_of(const uint32_t *words, int64_t m, int32_t *places) {
    int32_t found = 0;
    for (int64_t i = 0; i < m; i++) {
        uint64_t stop = 1ull << WORD, left = words[i];
        int32_t next = found + __builtin_popcountll(left), begin = (int32_t)i * WORD;
        places[found++] = begin + __builtin_ctzll(left | stop);
        left &= left - 1;
        places[found++] = begin + __builtin_ctzll(left | stop);
        for (left &= left - 1; found < next; left &= left - 1) places[found++] = begin + __builtin_ctzll(left);
        found = next;
    }
    return found;
}

/* how the magnitudes lie around each bracket; several brackets may look at one input */
FAST int plait_select(Group *g, Bracket *brackets, int count, int64_t n) {
    float x[MOST][STRIP], base[STRIP], apart[STRIP];
    Window window;
    int plain = simple(g);
    for (int c = 0; c < count; c++) plain &= brackets[c].input >= 0;
    for (int64_t at = 0, end = 0, m; at < n; at += m) {
        if (at == end && !(end = look(g, &window, at, n, n))) return -1;
        m = end - at < STRIP ? end - at : STRIP;
        if (!plain) gather(g, &window, at, m, base, x);
        for (int c = 0; c < count; c++) {
            Bracket *b = brackets + c;
            int32_t bits[STRIP], places[STRIP + 2];
            uint32_t inside[STRIP / WORD];
            int64_t whole = (m + WORD - 1) / WORD * WORD;
            const char *own = plain ? window.data[b->input] : 0, *less = window.base;
            if (plain && less)
                for (int64_t i = 0; i < m; i++) bits[i] = magnitude_of(bf16(own, at + i) - bf16(less, at + i));
            else if (plain)
                for (int64_t i = 0; i < m; i++) bits[i] = magnitude_of(bf16(own, at + i));
            else {
                if (b->input < 0) variance(g->count, x, m, apart);
                const float *of = b->input < 0 ? apart : x[b->input];
                for (int64_t i = 0; i < m; i++) bits[i] = magnitude_of(of[i]);
            }
            for (int64_t i = m; i < whole; i++) bits[i] = 0;
            CHOSEN(around)(bits, whole, b, inside);
            b->zeros -= whole - m;
            if (m < whole) inside[m / WORD] &= (1u << m % WORD) - 1;
            int32_t found = places_of(inside, whole / WORD, places);
            for (int32_t i = 0; i < found; i++) b->counts[((uint32_t)bits[places[i]] - b->low) >> b->shift]++;
        }
    }
    return 0;
}

/* the bits of the magnitudes of all inputs, one `stride` after the other, or with `apart` of their variance */
FAST int plait_magnitudes(Group *g, int apart, int64_t n, uint32_t *out, int64_t stride) {
    float x[MOST][STRIP], base[STRIP], spread[STRIP];
    Window window;
    for (int64_t at = 0, end = 0, m; at < n; at += m) {
        if (at == end && !(end = look(g, &window, at, n, n))) return -1;
        m = end - at < STRIP ? end - at : STRIP;
        gather(g, &window, at, m, base, x);
        if (apart) variance(g->count, x, m, spread);
        for (int j = 0; j < (apart ? 1 : g->count); j++) {
            const float *of = apart ? spread : x[j];
            for (int64_t i = 0; i < m; i++) out[j * stride + at + i] = float_to_bits(of[i]) & 0x7FFFFFFFu;
        }
    }
    return 0;
}

/* counts[x >> shift] += 1 */
void plait_count_bins(const uint32_t *x, int64_t n, int shift, uint32_t *counts) {
    for (int64_t i = 0; i < n; i++) counts[x[i] >> shift]++;
}

/* the k-th largest of n numbers below 2^31, k from 1; `counts` has room for 2^16 */
uint32_t plait_largest(const uint32_t *x, int64_t n, int64_t k, uint32_t *counts, int64_t *above) {
    uint32_t found = 0;
    int64_t more = 0;
    for (int half = 1; half >= 0; half--) {
        memset(counts, 0, 4 << 16);
        for (int64_t i = 0; i < n; i++)
            if (half || x[i] >> 16 == found >> 16) counts[half ? x[i] >> 16 : x[i] & 0xFFFFu]++;
        uint32_t bin = 0xFFFF;
        while (more + counts[bin] < k) more += counts[bin--];
        found |= half ? bin << 16 : bin;
    }
    *above = more;
    return found;
}

/* the bin of a bracket that holds the k-th largest, k from 1, and how many lie in the bins above it; -1: in none */
int64_t plait_locate(const uint32_t *counts, int64_t bins, int64_t k, int64_t *above) {
    int64_t more = 0;
    for (int64_t bin = bins - 1; bin >= 0; bin--) {
        if (more + counts[bin] >= k) {
            *above = more;
            return bin;
        }
        more += counts[bin];
    }
    return -1;
}

/* counts[i] = how many of the i-th part of x are at least `value`; x has `parts` parts of `size` */
FAST void plait_parts(const uint32_t *x, int64_t parts, int64_t size, uint32_t value, int64_t *counts) {
    for (int64_t p = 0; p < parts; p++) {
        int64_t found = 0;
        for (int64_t i = 0; i < size; i++) found += x[p * size + i] >= value;
        counts[p] = found;
    }
}

/* sorts; `spare` has room for n */
static uint64_t *ordered(uint64_t *x, uint64_t *spare, int64_t n) {
    for (int shift = 0; shift < 64; shift += 8) {
        uint32_t counts[256] = {0}, sum = 0;
        for (int64_t i = 0; i < n; i++) counts[x[i] >> shift & 255]++;
        if (counts[x[0] >> shift & 255] == (uint32_t)n) continue; /* one digit for all */
        for (int b = 0; b < 256; b++) {
            uint32_t here = counts[b];
            counts[b] = sum;
            sum += here;
        }
        for (int64_t i = 0; i < n; i++) spare[counts[x[i] >> shift & 255]++] = x[i];
        uint64_t *swap = x;
        x = spare, spare = swap;
    }
    return x;
}

#define BINS 512
#define UNSURE 64 /* one entry in so many may need a look at the whole row for its exact rank; else it is sorted */

/* Says of each entry of a row whether it is kept (1) or dropped (0) whatever its rank inside of its bin, or else 2; `limit` grows
 * with the rank. */
INLINE void by_bins(const int32_t *restrict bin, const uint32_t *restrict number, const uint32_t *restrict limit, int64_t columns,
    uint8_t *restrict kept) {
    uint32_t counts[2][BINS] = {{0}}, sum = 0;
    struct {
        uint32_t low, high;
    } edge[BINS];
    int64_t i = 0;
    for (; i + 2 <= columns; i += 2) {
        counts[0][bin[i]]++;
        counts[1][bin[i + 1]]++;
    }
    if (i < columns) counts[0][bin[i]]++;
    for (int c = 0; c < BINS; c++) {
        edge[c].low = limit[sum < columns ? sum : columns - 1];
        sum += counts[0][c] + counts[1][c];
        edge[c].high = limit[sum ? sum - 1 : 0];
    }
    for (i = 0; i < columns; i++) {
        uint32_t own = number[i], low = edge[bin[i]].low, high = edge[bin[i]].high;
        kept[i] = (uint8_t)((own < low) + 2 * ((own >= low) & (own < high)));
    }
}

/* entries of smaller magnitude, or of the same and before it */
INLINE int64_t rank_of(const uint32_t *restrict key, int64_t columns, int64_t place) {
    uint32_t own = key[place];
    int32_t rank = 0;
    for (int32_t i = 0; i < (int32_t)columns; i++) rank += key[i] < own;
    for (int32_t i = 0; i < (int32_t)place; i++) rank += key[i] == own;
    return rank;
}

/* a row's entries as (magnitude, place), in order: by magnitude into bins, which leaves little to be put right */
INLINE const uint64_t *in_order(const uint32_t *key, const int32_t *bin, int64_t columns, uint64_t *pairs, uint64_t *other) {
    int64_t most = 8 * columns, moves = most;
    if (bin) {
        uint32_t counts[BINS] = {0}, sum = 0;
        for (int64_t i = 0; i < columns; i++) counts[bin[i]]++;
        for (int c = 0; c < BINS; c++) {
            uint32_t here = counts[c];
            counts[c] = sum;
            sum += here;
        }
        for (int64_t i = 0; i < columns; i++) pairs[counts[bin[i]]++] = (uint64_t)key[i] << 32 | (uint64_t)i;
        moves = 0;
    } else
        for (int64_t i = 0; i < columns; i++) pairs[i] = (uint64_t)key[i] << 32 | (uint64_t)i;
    for (int64_t i = 1; i < columns && moves < most; i++) {
        uint64_t own = pairs[i];
        int64_t to = i;
        for (; to > 0 && pairs[to - 1] > own; to--, moves++) pairs[to] = pairs[to - 1];
        pairs[to] = own;
    }
    return moves < most ? pairs : ordered(pairs, other, columns); /* it was not little */
}

/* 1 for the entries that are kept by chance and rank (see ops/drop.py): number < low + wide * rank, the rank of the magnitude in
 * its row going from 0 to 1, equal ones in the order of their place. `spare` has room for 8 rows of floats. */
FAST int plait_ranked(Group *g, int64_t rows, int64_t columns, double low, double wide, uint32_t key1, uint32_t key2,
    uint32_t first, uint64_t *spare, uint8_t *mask) {
    float base[STRIP], x[STRIP];
    Window window;
    int64_t end = 0;
    uint64_t *pairs = spare, *other = pairs + columns;
    uint32_t *limit = (uint32_t *)(other + columns), *number = limit + columns, *key = number + columns;
    int32_t *bin = (int32_t *)(key + columns);
    for (int64_t i = 0; i < columns; i++) {
        double rank = columns == 1 ? 0.5 : (double)i / (double)(columns - 1);
        double chance = ceil((rank * wide + low) * 0x1p24); /* of whole numbers up to 2^24 */
        limit[i] = chance <= 0 ? 0 : chance >= 0x1p24 ? 1u << 24 : (uint32_t)chance;
    }
    for (int64_t row = 0; row < rows; row++) {
        uint32_t top = 0;
        uint8_t *kept = mask + row * columns;
        for (int64_t at = 0, m; at < columns; at += m) {
            int64_t from = row * columns + at;
            if (from == end && !(end = look(g, &window, from, rows * columns, rows * columns))) return -1;
            m = columns - at < STRIP ? columns - at : STRIP;
            m = end - from < m ? end - from : m;
            bottom(g, &window, from, m, base);
            bare(g, &window, 0, base, from, m, x);
            for (int64_t i = 0; i < m; i++) {
                uint32_t own = float_to_bits(x[i]) & 0x7FFFFFFFu;
                key[at + i] = own;
                top = top > own ? top : own;
            }
            draw(key1, key2, first + (uint32_t)from, number + at, m);
            for (int64_t i = 0; i < m; i++) number[at + i] >>= 8;
        }
        /* bins of equal width decide most of them */
        float scale = (float)(BINS - 1) / bits_to_float(top);
        int64_t unsure = 0;
        int binned = scale > 0 && scale < 0x1p100f; /* else all are zeros, or tiny, or one is not finite */
        if (binned) {
            for (int64_t i = 0; i < columns; i++) bin[i] = (int32_t)(bits_to_float(key[i]) * scale);
            by_bins(bin, number, limit, columns, kept);
            for (int64_t i = 0; i < columns; i++) unsure += kept[i] >> 1;
        }
        if (binned && unsure <= columns / UNSURE) {
            for (const uint8_t *at = kept; unsure; unsure--, at++) {
                at = memchr(at, 2, (size_t)(kept + columns - at));
                int64_t place = at - kept;
                kept[place] = number[place] < limit[rank_of(key, columns, place)];
            }
            continue;
        }
        const uint64_t *k = in_order(key, binned ? bin : 0, columns, pairs, other);
        for (int64_t i = 0; i < columns; i++) {
            uint32_t place = (uint32_t)k[i];
            kept[place] = number[place] < limit[i];
        }
    }
    return 0;
}
