/* What is written in vectors. Included by fused.c once for each width that processors have, since compilers make slow code of
 * vectors that are wider than the processor's: of BYTES, for processors of a LEVEL, with names that say so (NAMED).
 *
 * Whatever the width, sums are kept in LANES doubles and what was drawn in LANE bits side by side: the results are the same.
 */
#define Words NAMED(Words)
#define Strand NAMED(Strand)
#define Signs NAMED(Signs)
#define Floats NAMED(Floats)
#define Doubles NAMED(Doubles)
#define SHORT (BYTES / 4) /* words in a vector */
#define LONG (BYTES / 8)  /* doubles in a vector */
typedef uint32_t Words __attribute__((vector_size(BYTES), aligned(4), may_alias));
typedef float Strand __attribute__((vector_size(BYTES), aligned(4), may_alias));
typedef int32_t Signs __attribute__((vector_size(BYTES), aligned(4), may_alias));
typedef float Floats __attribute__((vector_size(BYTES / 2), aligned(4), may_alias));
typedef double Doubles __attribute__((vector_size(BYTES), may_alias));

LEVEL INLINE Words NAMED(scrambled)(Words x) {
    x ^= x >> 16;
    x *= 0x21F0AAADu;
    x ^= x >> 15;
    x *= 0xD35A2D97u;
    x ^= x >> 15;
    return x;
}

LEVEL INLINE Words NAMED(exchanged)(Words x) { return x << 16 | x >> 16; }

/* x times `yes` where all bits of `kept` are set, `no` where none is */
LEVEL INLINE void NAMED(choose)(float *x, Words kept, uint32_t yes, uint32_t no) {
    *(Strand *)x *= (Strand)((kept & yes) | (~kept & no));
}

/* x times 1 or 0, by chance, times `scale`: x * 0 * scale is x * (0 * scale), signs and NaN included. What was drawn in an
 * earlier pass is not drawn again. x has room for whole LANEs. */
LEVEL static void NAMED(drop)(const Stage *s, float scale, float *restrict x, int64_t at, int64_t m) {
    double threshold = ceil((double)s->value * 0x1p24); /* number / 2^24 < density, in whole numbers */
    uint32_t limit = threshold <= 0 ? 0 : (uint32_t)threshold << 8;
    uint32_t key1 = s->key1, key2 = s->key2, low = s->low + (uint32_t)at;
    float yes = 1.0f * scale, no = 0.0f * scale;
    uint32_t yes_bits = float_to_bits(yes), no_bits = float_to_bits(no);
    int64_t first = (int64_t)s->low + at, known = s->drawn && first % LANE == 0 ? s->drawn->count : -1;
    int recall = first + m <= known;
    if (!recall && first != known) {
        uint32_t bits[STRIP];
        draw(key1, key2, low, bits, m);
        for (int64_t i = 0; i < m; i++) x[i] *= bits[i] < limit ? yes : no;
        return;
    }
    for (int part = 0; part < LANE; part += SHORT) { /* of each LANE */
        Words count;
        for (int l = 0; l < SHORT; l++) count[l] = (uint32_t)(part + l) + key1;
        for (int64_t i = 0, lane = first / LANE, stop; i < m; lane = (first + i) / LANE) {
            Words *place = (Words *)(s->drawn->words[lane / WORD] + part), words = *place, bit = {0};
            stop = i + (WORD - lane % WORD) * LANE < m ? i + (WORD - lane % WORD) * LANE : m;
            if (recall) {
                for (words <<= lane % WORD; i < stop; i += LANE, words += words)
                    NAMED(choose)(x + i + part, (Words)((Signs)words >> (WORD - 1)), yes_bits, no_bits);
                continue;
            }
            bit += 1u << (WORD - 1) >> lane % WORD;
            while (i < stop) {
                Words word = NAMED(scrambled)(NAMED(scrambled)(count + (uint32_t)(lane / 2 * LANE)) + key2);
                if (lane % 2) word = NAMED(exchanged)(word);
                for (int second = lane % 2; second < 2 && i < stop; second++, lane++, i += LANE, bit >>= 1) {
                    Words kept = (Words)(word < limit);
                    words |= kept & bit;
                    NAMED(choose)(x + i + part, kept, yes_bits, no_bits);
                    word = NAMED(exchanged)(word);
                }
            }
            *place = words;
        }
    }
    s->drawn->count += recall ? 0 : m;
}

#if BYTES == 64
LEVEL INLINE Doubles NAMED(widened)(const float *x) { return (Doubles)_mm512_cvtps_pd(_mm256_loadu_ps(x)); }
LEVEL INLINE Doubles NAMED(magnitude)(const float *x) { return (Doubles)_mm512_abs_pd(_mm512_cvtps_pd(_mm256_loadu_ps(x))); }
#else
LEVEL INLINE Doubles NAMED(widened)(const float *x) { return __builtin_convertvector(*(const Floats *)x, Doubles); }
LEVEL INLINE Doubles NAMED(magnitude)(const float *x) {
    typedef int32_t Bits __attribute__((vector_size(BYTES / 2)));
    return __builtin_convertvector((Floats)((Bits)(*(const Floats *)x) & 0x7FFFFFFF), Doubles);
}
#endif

/* a bit, from the lowest, for each number above `limit` */
LEVEL INLINE uint32_t NAMED(marks)(Signs x, int32_t limit) {
#if BYTES == 64
    return _mm512_cmpgt_epi32_mask((__m512i)x, _mm512_set1_epi32(limit));
#elif BYTES == 32
    return (uint32_t)_mm256_movemask_ps((__m256)(x > limit));
#else
    uint32_t found = 0;
    for (int l = 0; l < SHORT; l++) found |= (uint32_t)(x[l] > limit) << l;
    return found;
#endif
}

/* Counts the magnitudes above a bracket and those that are 0, and marks those inside with a bit each. There are whole WORDs of
 * them. */
LEVEL static void NAMED(around)(const int32_t *bits, int64_t m, Bracket *b, uint32_t *inside) {
    int32_t low = (int32_t)(b->low - 1), high = (int32_t)(b->low + b->span - 1), above = 0;
    Signs zeros = {0};
    for (int64_t i = 0; i < m; i += WORD) {
        uint32_t over = 0, from = 0;
        for (int l = 0; l < WORD; l += SHORT) {
            Signs own = *(const Signs *)(bits + i + l);
            over |= NAMED(marks)(own, high) << l;
            from |= NAMED(marks)(own, low) << l;
            zeros -= own == 0;
        }
        above += __builtin_popcount(over);
        inside[i / WORD] = from & ~over;
    }
    b->above += above;
    for (int l = 0; l < SHORT; l++) b->zeros += zeros[l];
}

/* products of two floats are exact in doubles: multiplied and added at once they are the same */
#if defined(__GNUC__) && !defined(__clang__)
#define CONTRACTED __attribute__((optimize("fp-contract=fast")))
#else
#define CONTRACTED
#endif

/* Add to `sums` sums, in lanes, the terms of k inputs' entries, of which there are whole LANES: side by side, so that no
 * addition waits for another. */
#define SUMS(name, load, sums, terms)                                                                              \
    LEVEL INLINE void NAMED(name##_of)(int k, float (*x)[STRIP], int64_t m, double (*lane)[LANES]) {                      \
        Doubles own[LANES / LONG][sums], e[MOST];                                                                  \
        for (int c = 0; c < sums; c++)                                                                             \
            for (int h = 0; h < LANES / LONG; h++) own[h][c] = *(Doubles *)(lane[c] + h * LONG);                   \
        for (int64_t i = 0; i < m; i += LANES)                                                                     \
            for (int h = 0; h < LANES / LONG; h++) {                                                               \
                for (int j = 0; j < k; j++) e[j] = NAMED(load)(x[j] + i + h * LONG);                               \
                terms                                                                                              \
            }                                                                                                      \
        for (int c = 0; c < sums; c++)                                                                             \
            for (int h = 0; h < LANES / LONG; h++) *(Doubles *)(lane[c] + h * LONG) = own[h][c];                   \
    }                                                                                                              \
    LEVEL CONTRACTED static void NAMED(name)(int k, float (*x)[STRIP], int64_t m, double (*lane)[LANES]) {         \
        switch (k) {                                                                                               \
        case 1: NAMED(name##_of)(1, x, m, lane); break;                                                            \
        case 2: NAMED(name##_of)(2, x, m, lane); break;                                                            \
        case 3: NAMED(name##_of)(3, x, m, lane); break;                                                            \
        case 4: NAMED(name##_of)(4, x, m, lane); break;                                                            \
        default: NAMED(name##_of)(k, x, m, lane);                                                                  \
        }                                                                                                          \
    }
#define EACH for (int j = 0; j < k; j++)
#define PAIRS                           \
    for (int a = 0, c = 0; a < k; a++) \
        for (int b = a; b < k; b++, c++)
SUMS(products, widened, k * (k + 1) / 2, PAIRS own[h][c] += e[a] * e[b];)
SUMS(squares, widened, k, EACH own[h][j] += e[j] * e[j];)
SUMS(lengths, magnitude, k, EACH own[h][j] += e[j];)

#undef Words
#undef Strand
#undef Signs
#undef Floats
#undef Doubles
#undef SHORT
#undef LONG
#undef SUMS
#undef CONTRACTED
#undef EACH
#undef PAIRS
#undef BYTES
#undef NAMED
#undef LEVEL
