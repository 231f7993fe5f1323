/* A block on AMX for one precision. Included by amx.c with these defined:
 *   PARTS    1: operands of products are bfloat16 (`fast`); 2: each is hi + lo, two bfloat16, and a product is
 *            hi hi + hi lo + lo hi (`high`)
 *   NAME(x)  the name of x for this precision
 *
 * All else is float32: the residual stream, LayerNorm, softmax, GELU and sums. A window is feature-major: row c holds
 * channel c of its 64 tokens (amx_tiles.h). Where an operand has two parts, lo stands some words behind hi.
 */

/* 2^x for x from -126 to 127, times `factor`: to 1e-4, relative, or to 2e-7. Adding `magic` leaves round(x) in the
 * lowest bits. */
static ALWAYS_INLINE __m512 NAME(exp2v)(__m512 x, const float factor) {
    const __m512 magic = _mm512_set1_ps(12582912.0f);
    __m512 shifted = _mm512_add_ps(x, magic), f = _mm512_sub_ps(x, _mm512_sub_ps(shifted, magic)), p;
#define TERM(c) p = _mm512_fmadd_ps(p, f, _mm512_set1_ps((c) * factor))
    if (PARTS == 1) {
        p = _mm512_set1_ps(0.05517154559493065f * factor);
        TERM(0.2426111102104187f), TERM(0.6932610273361206f), TERM(0.9999280571937561f);
    } else {
        p = _mm512_set1_ps(0.0013276457320898771f * factor);
        TERM(0.009675540961325169f), TERM(0.05550713464617729f), TERM(0.24022120237350464f);
        TERM(0.6931469440460205f), TERM(1.0000001192092896f);
    }
#undef TERM
    return _mm512_castsi512_ps(
        _mm512_add_epi32(_mm512_castps_si512(p), _mm512_slli_epi32(_mm512_castps_si512(shifted), 23)));
}

/* Exact GELU as in block.h, with log2 Phi(-a) fitted on [0, 4.5] to 1e-3 or on [0, 6] to 2e-6, absolute. */
static ALWAYS_INLINE __m512 NAME(gelu)(__m512 x) {
    __m512 size = _mm512_abs_ps(x), a = _mm512_min_ps(size, _mm512_set1_ps(PARTS == 1 ? 4.5f : 6.0f)), p;
#define TERM(c) p = _mm512_fmadd_ps(p, a, _mm512_set1_ps(c))
    if (PARTS == 1) {
        p = _mm512_set1_ps(-0.024873891845345497f);
        TERM(-0.4988538920879364f), TERM(-1.1292191743850708f), TERM(-1.0035369396209717f);
    } else {
        p = _mm512_set1_ps(3.309426028863527e-05f);
        TERM(-0.0007692320505157113f), TERM(0.008080756291747093f), TERM(-0.053412165492773056f);
        TERM(-0.4587709307670593f), TERM(-1.1512017250061035f), TERM(-0.999993085861206f);
    }
#undef TERM
    return _mm512_fnmadd_ps(size, NAME(exp2v)(p, 1.0f), _mm512_max_ps(x, _mm512_setzero_ps()));
}

/* Two rows of 16 tokens to a row of pairs: hi rounded, or cut off, and what that leaves as lo, rounded or cut off. */
static ALWAYS_INLINE void NAME(put_pair)(__m512 even, __m512 odd, int round_hi, int round_lo, uint32_t *out, long lo) {
    const __m512i half = _mm512_set1_epi32(0x8000), high = _mm512_set1_epi32((int)0xffff0000);
    __m512i a = _mm512_castps_si512(even), b = _mm512_castps_si512(odd);
    if (round_hi) a = _mm512_add_epi32(a, half), b = _mm512_add_epi32(b, half);
    _mm512_store_si512(out, _mm512_mask_blend_epi16(0xAAAAAAAA, _mm512_srli_epi32(a, 16), b));
    if (PARTS == 2) {
        a = _mm512_castps_si512(_mm512_sub_ps(even, _mm512_castsi512_ps(_mm512_and_si512(a, high))));
        b = _mm512_castps_si512(_mm512_sub_ps(odd, _mm512_castsi512_ps(_mm512_and_si512(b, high))));
        if (round_lo) a = _mm512_add_epi32(a, half), b = _mm512_add_epi32(b, half);
        _mm512_store_si512(out + lo, _mm512_mask_blend_epi16(0xAAAAAAAA, _mm512_srli_epi32(a, 16), b));
    }
}

static ALWAYS_INLINE void NAME(round_pair)(__m512 even, __m512 odd, uint32_t *out, long lo) {
    NAME(put_pair)(even, odd, 1, 1, out, lo);
}

/* The same with less work where there are two parts: only against operands whose hi part is rounded. */
static ALWAYS_INLINE void NAME(quick_pair)(__m512 even, __m512 odd, uint32_t *out, long lo) {
    NAME(put_pair)(even, odd, PARTS == 1, 1, out, lo);
}

/* 32 values of a row, in their order; the lo parts `lo` entries behind. */
static ALWAYS_INLINE void NAME(put_row)(__m512 first, __m512 second, uint16_t *out, long lo) {
    __m512i hi = (__m512i)_mm512_cvtne2ps_pbh(second, first);
    _mm512_storeu_si512(out, hi);
    if (PARTS == 2) {
        __m512i a = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(hi)), 16);
        __m512i b = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(hi, 1)), 16);
        first = _mm512_sub_ps(first, _mm512_castsi512_ps(a)), second = _mm512_sub_ps(second, _mm512_castsi512_ps(b));
        _mm512_storeu_si512(out + lo, (__m512i)_mm512_cvtne2ps_pbh(second, first));
    }
}

/* The GELU of a strip of fc1's sums, in steps of two rows of 16 tokens: they go between the products of the next strip,
 * which keeps both units of the processor busy. */
struct NAME(activation) {
    const float *strip; /* null: nothing to do */
    uint32_t *out;
    long lo;
    int step; /* of 32 */
};

static ALWAYS_INLINE void NAME(activate)(struct NAME(activation) *todo, int steps) {
    for (; todo->strip && steps && todo->step < 32; steps--, todo->step++) {
        const int vector = todo->step / 8, pair = todo->step % 8;
        const float *rows = todo->strip + AT(2 * pair, vector);
        NAME(quick_pair)(NAME(gelu)(_mm512_load_ps(rows)), NAME(gelu)(_mm512_load_ps(rows + 16)),
                         todo->out + AT(pair, vector), todo->lo);
    }
}

/* Add the rows in tile 4 times a strip of columns. */
static ALWAYS_INLINE void NAME(multiply)(const uint32_t *columns, struct NAME(activation) *between) {
    const int steps = PARTS == 1 ? 2 : 1;
    LOAD_TILE(5, columns, 64);
    ADD_PRODUCT(0, 4, 5);
    LOAD_TILE(6, columns + TILE, 64);
    NAME(activate)(between, steps);
    ADD_PRODUCT(1, 4, 6);
    LOAD_TILE(7, columns + 2 * TILE, 64);
    NAME(activate)(between, steps);
    ADD_PRODUCT(2, 4, 7);
    LOAD_TILE(5, columns + 3 * TILE, 64);
    NAME(activate)(between, steps);
    ADD_PRODUCT(3, 4, 5);
    NAME(activate)(between, steps);
}

/* 16 rows of sums: packed rows (depths of 32, PARTS, 16, 32) times columns. */
static ALWAYS_INLINE void NAME(product)(const uint16_t *rows, const uint32_t *columns, long lo, long depths,
                                        float *out, struct NAME(activation) *between) {
    clear_sums();
    for (long k = 0; k < depths; k++, rows += PARTS * 2 * TILE, columns += STRIP) {
        LOAD_TILE(4, rows, 64);
        NAME(multiply)(columns, between);
        if (PARTS == 2) {
            NAME(multiply)(columns + lo, between);
            LOAD_TILE(4, rows + 2 * TILE, 64);
            NAME(multiply)(columns, between);
        }
    }
    store_sums(out, 4 * TILE, 64);
}

/* Two strips of 16 rows of sums, for half of the tokens: packed rows, as above and `next` entries behind, times columns.
 * Fewer tiles are loaded than for one strip and all tokens, and the columns stay in the first level of the cache. */
static ALWAYS_INLINE void NAME(square)(const uint16_t *rows, long next, const uint32_t *columns, long lo, long depths,
                                       float *out) {
    clear_sums();
    for (long k = 0; k < depths; k++, rows += PARTS * 2 * TILE, columns += STRIP) {
        LOAD_TILE(6, columns, 64);
        LOAD_TILE(7, columns + TILE, 64);
        if (PARTS == 2) {
            LOAD_TILE(4, rows + 2 * TILE, 64);
            LOAD_TILE(5, rows + next + 2 * TILE, 64);
            multiply_square();
        }
        LOAD_TILE(4, rows, 64);
        LOAD_TILE(5, rows + next, 64);
        multiply_square();
        if (PARTS == 2) {
            LOAD_TILE(6, columns + lo, 64);
            LOAD_TILE(7, columns + lo + TILE, 64);
            multiply_square();
        }
    }
    STORE_TILE(0, out, 64);
    STORE_TILE(1, out + TILE, 64);
    STORE_TILE(2, out + STRIP, 64);
    STORE_TILE(3, out + STRIP + TILE, 64);
}

/* A linear layer: `strips` of 16 outputs each, in squares if the columns do not fit the first level of the cache. */
static void NAME(linear)(const uint16_t *rows, const uint32_t *columns, long lo, long depths, long strips, float *out) {
    struct NAME(activation) none = {0};
    const long next = depths * PARTS * 2 * TILE;
    const long paired = PARTS * depths > 8 ? strips / 2 * 2 : 0;
    for (long half = 0; half < STRIP; half += STRIP / 2)
        for (long r = 0; r < paired; r += 2)
            NAME(square)(rows + r * next, next, columns + half, lo, depths, out + r * STRIP + half);
    for (long r = paired; r < strips; r++)
        NAME(product)(rows + r * next, columns, lo, depths, out + r * STRIP, &none);
}

/* fc1 and GELU, to pairs. `strips` holds two. */
static void NAME(linear_gelu)(const uint16_t *rows, const uint32_t *columns, long lo, long depths, long outputs,
                              float *strips, uint32_t *out, long out_lo) {
    struct NAME(activation) before = {.lo = out_lo};
    const long count = (outputs + 15) / 16;
    for (long r = 0; r < count; r++) {
        float *strip = strips + r % 2 * STRIP;
        NAME(product)(rows + r * depths * PARTS * 2 * TILE, columns, lo, depths, strip, &before);
        NAME(activate)(&before, 32);
        before.strip = strip, before.step = 0, before.out = out + AT(8 * r, 0);
    }
    for (long vector = 0; vector < 4; vector++) /* the last strip may be cut: a constant follows its rows */
        for (long i = 0; i < outputs - 16 * (count - 1); i += 2) {
            const float *row = before.strip + AT(i, vector);
            NAME(round_pair)(NAME(gelu)(_mm512_load_ps(row)), NAME(gelu)(_mm512_load_ps(row + 16)),
                             out + AT(8 * (count - 1) + i / 2, vector), out_lo);
        }
}

/* x += LayerNorm(y), over rows; also as pairs, unless `pairs` is null. */
static void NAME(add_norm)(float *x, const float *y, long channels, const float *weight, const float *bias, float eps,
                           uint32_t *pairs, long lo) {
    const __m512 share = _mm512_set1_ps(1.0f / channels);
    __m512 mean[4], factor[4];
    for (int v = 0; v < 4; v++) mean[v] = factor[v] = _mm512_setzero_ps();
    for (long c = 0; c < channels; c++)
        for (int v = 0; v < 4; v++) mean[v] = _mm512_add_ps(mean[v], _mm512_load_ps(y + AT(c, v)));
    for (int v = 0; v < 4; v++) mean[v] = _mm512_mul_ps(mean[v], share);
    for (long c = 0; c < channels; c++)
        for (int v = 0; v < 4; v++) {
            __m512 d = _mm512_sub_ps(_mm512_load_ps(y + AT(c, v)), mean[v]);
            factor[v] = _mm512_fmadd_ps(d, d, factor[v]);
        }
    for (int v = 0; v < 4; v++) {
        __m512 variance = _mm512_fmadd_ps(factor[v], share, _mm512_set1_ps(eps));
        factor[v] = _mm512_div_ps(_mm512_set1_ps(1.0f), _mm512_sqrt_ps(variance));
    }
    for (long c = 0; c < channels; c += 2)
        for (int v = 0; v < 4; v++) {
            __m512 sum[2];
            for (int i = 0; i < 2; i++) {
                float *row = x + AT(c + i, v);
                __m512 normal =
                    _mm512_mul_ps(_mm512_sub_ps(_mm512_load_ps(y + AT(c + i, v)), mean[v]), factor[v]);
                sum[i] = _mm512_add_ps(_mm512_load_ps(row), _mm512_set1_ps(bias[c + i]));
                sum[i] = _mm512_fmadd_ps(normal, _mm512_set1_ps(weight[c + i]), sum[i]);
                _mm512_store_ps(row, sum[i]);
            }
            if (pairs) NAME(quick_pair)(sum[0], sum[1], pairs + AT(c / 2, v), lo);
        }
}

#include "amx_attention.h"

/* A window through the whole block. */
static void NAME(block_window)(const struct work *work, long index, void *memory) {
    const struct block *w = work->block;
    const struct packed_block *packed = w->packed;
    const struct block_scratch *m = memory;
    const long channels = w->channels, depths = operand_rows(channels) / 32, strips = (channels + 15) / 16;
    const long kind = kind_of(work, index);
    const float *rows[SLOTS];
    float *out = work->out + index * w->tokens * channels;
    find_tokens(work, index, rows);
    find_tokens(work, index + 1 < work->count ? index + 1 : index, ((struct block_scratch *)memory)->next);
    load_tokens(rows, channels, m->x);
    for (long c = 0; c < channels; c += 2)
        for (int v = 0; v < 4; v++)
            NAME(round_pair)(_mm512_load_ps(m->x + AT(c, v)), _mm512_load_ps(m->x + AT(c + 1, v)),
                             m->tokens + AT(c / 2, v), m->lo);
    NAME(linear)(packed->qkv, m->tokens, m->lo, depths, (3 * channels + 15) / 16, m->sums);
    NAME(attend)(w, packed->bias + kind * w->heads * 4 * STRIP, kind || w->tokens < SLOTS, out, m);
    NAME(linear)(packed->proj, m->attended, m->lo, depths, strips, m->sums);
    NAME(add_norm)(m->x, m->sums, channels, w->norm1_weight, w->norm1_bias, w->eps, m->tokens, m->lo);
    NAME(linear_gelu)(packed->fc1, m->tokens, m->lo, depths, w->hidden, m->logits, m->hidden, m->hidden_lo);
    NAME(linear)(packed->fc2, m->hidden, m->hidden_lo, operand_rows(w->hidden) / 32, strips, m->sums);
    NAME(add_norm)(m->x, m->sums, channels, w->norm2_weight, w->norm2_bias, w->eps, NULL, 0);
    store_tokens(m->x, w->tokens, channels, out);
}
