/* The block and the convolution for one instruction set. Included by block.c with these defined:
 *   NAME(x)  the name of x for this instruction set
 *   LANES    floats in a vector
 *   VECTORS  vectors of a row that a micro kernel keeps in registers
 *   LARGER(a, b)  of two vectors, lane by lane
 *
 * Within a window everything is feature-major: row c holds channel c of all tokens in SLOTS floats; what stands behind
 * the last token is finite and reaches no other. So matrix products read vectors of tokens, and softmax and LayerNorm
 * never add across a vector.
 */

typedef float NAME(floats) __attribute__((vector_size(LANES * 4), aligned(LANES * 4)));
typedef int32_t NAME(ints) __attribute__((vector_size(LANES * 4), aligned(LANES * 4)));
typedef float NAME(loose) __attribute__((vector_size(LANES * 4), aligned(4)));
typedef float NAME(four) __attribute__((vector_size(16), aligned(4)));
#define floats NAME(floats)
#define ints NAME(ints)
#define loose NAME(loose)
#define four NAME(four)
#define ROWS 6
#define STEP (LANES * VECTORS)

static ALWAYS_INLINE floats NAME(splat)(float value) { return value - (floats){0}; }
#define splat NAME(splat)

#define larger(a, b) LARGER(a, b)

/* Four rows of four to four columns. */
static ALWAYS_INLINE void NAME(turn)(four r[4]) {
    four a = PICK(r[0], r[1], 0, 4, 1, 5), b = PICK(r[0], r[1], 2, 6, 3, 7);
    four c = PICK(r[2], r[3], 0, 4, 1, 5), d = PICK(r[2], r[3], 2, 6, 3, 7);
    r[0] = PICK(a, c, 0, 1, 4, 5), r[1] = PICK(a, c, 2, 3, 6, 7);
    r[2] = PICK(b, d, 0, 1, 4, 5), r[3] = PICK(b, d, 2, 3, 6, 7);
}

/* Tokens from wherever they lie into the columns of x, whose rows are `stride` apart; `count` is a multiple of four. */
static void NAME(load)(const float *const *tokens, long count, long channels, float *x, long stride) {
    for (long i = 0; i < count; i += 4) {
        long c = 0;
        for (; c + 4 <= channels; c += 4) {
            four r[4];
            UNROLL for (int k = 0; k < 4; k++) r[k] = *(const four *)(tokens[i + k] + c);
            NAME(turn)(r);
            UNROLL for (int k = 0; k < 4; k++) *(four *)(x + (c + k) * stride + i) = r[k];
        }
        for (; c < channels; c++)
            for (int k = 0; k < 4; k++) x[c * stride + i + k] = tokens[i + k][c];
    }
}

/* The first `count` columns of x to tokens one behind the other, added to `residual` where there is one. */
static void NAME(store)(const float *x, long count, long channels, const float *residual, float *tokens) {
    long whole = channels / 4 * 4;
    for (long i = 0; i + 4 <= count; i += 4)
        for (long c = 0; c < whole; c += 4) {
            four r[4];
            UNROLL for (int k = 0; k < 4; k++) r[k] = *(const four *)(x + (c + k) * SLOTS + i);
            NAME(turn)(r);
            UNROLL for (int k = 0; k < 4; k++) {
                long place = (i + k) * channels + c;
                *(four *)(tokens + place) = residual ? r[k] + *(const four *)(residual + place) : r[k];
            }
        }
    for (long i = 0; i < count; i++)
        for (long c = i < count / 4 * 4 ? whole : 0; c < channels; c++) {
            long place = i * channels + c;
            tokens[place] = x[c * SLOTS + i] + (residual ? residual[place] : 0.0f);
        }
}

/* 2^x to 1e-7, relative, for x from -126 to 127. Adding `magic` leaves round(x) in the lowest bits. */
static ALWAYS_INLINE floats NAME(exp2v)(floats x) {
    const floats magic = splat(12582912.0f);
    floats shifted = x + magic;
    floats f = x - (shifted - magic);
    floats p = splat(0.00015345805149991065f);
    p = p * f + splat(0.0013399930903688073f);
    p = p * f + splat(0.009618489071726799f);
    p = p * f + splat(0.05550328642129898f);
    p = p * f + splat(0.24022646248340607f);
    p = p * f + splat(0.6931471824645996f);
    p = p * f + splat(1.0f);
    return (floats)((ints)p + ((ints)shifted << 23));
}

/* An attention weight from its logit: below 2^-100 it is nothing beside the others, and would be a denormal soon. */
static ALWAYS_INLINE floats NAME(weight)(floats logit) { return NAME(exp2v)(larger(logit, splat(-100.0f))); }

/* Exact GELU to 3e-7, absolute: max(x, 0) - |x| Phi(-|x|), with log2 Phi(-a) fitted on [0, 6]. */
static ALWAYS_INLINE floats NAME(gelu)(floats x) {
    floats size = (floats)((ints)x & 0x7fffffff);
    floats a = -larger(-size, splat(-6.0f));
    floats p = splat(-1.932080294864136e-06f);
    p = p * a + splat(2.8458098313421942e-05f);
    p = p * a + splat(-0.00013361845049075782f);
    p = p * a + splat(-0.00026620193966664374f);
    p = p * a + splat(0.0072367237880826f);
    p = p * a + splat(-0.052620988339185715f);
    p = p * a + splat(-0.4591641426086426f);
    p = p * a + splat(-1.1511112451553345f);
    p = p * a + splat(-0.9999998807907104f);
    return larger(x, splat(0.0f)) - size * NAME(exp2v)(p);
}

/* `rows` rows of out = start + a b for STEP tokens. Element (o, k) of a is a[o * a_row + k * a_column], and row k of b
 * begins at b + k * b_row. The start is `from` (a row each, as out), or else the number `bias[o]`, or else zero. With
 * `activate`, GELU of that; with `sums`, 2^ of it, and the rows' sum is added to `sums`. */
static ALWAYS_INLINE void NAME(micro)(int rows, const float *a, long a_row, long a_column, const float *b, long b_row,
                                      long depth, const float *bias, const float *from, int activate, float *sums,
                                      float *out) {
    floats sum[ROWS][VECTORS];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < VECTORS; v++)
            sum[r][v] = from ? *(const floats *)(from + r * SLOTS + v * LANES) : splat(bias ? bias[r] : 0.0f);
    for (long k = 0; k < depth; k++) {
        floats column[VECTORS];
        UNROLL for (int v = 0; v < VECTORS; v++) column[v] = *(const loose *)(b + k * b_row + v * LANES);
        UNROLL for (int r = 0; r < rows; r++) {
            floats factor = splat(a[r * a_row + k * a_column]);
            UNROLL for (int v = 0; v < VECTORS; v++) sum[r][v] += factor * column[v];
        }
    }
    if (activate)
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int v = 0; v < VECTORS; v++) sum[r][v] = NAME(gelu)(sum[r][v]);
    if (sums)
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int v = 0; v < VECTORS; v++) {
                sum[r][v] = NAME(weight)(sum[r][v]);
                *(floats *)(sums + v * LANES) += sum[r][v];
            }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < VECTORS; v++) *(floats *)(out + r * SLOTS + v * LANES) = sum[r][v];
}

/* The same for any number of rows and all SLOTS tokens. */
static ALWAYS_INLINE void NAME(product)(long rows, const float *a, long a_row, long a_column, const float *b,
                                        long b_row, long depth, const float *bias, const float *from, int activate,
                                        float *sums, float *out) {
#define BLOCK(count)                                                                                                   \
    NAME(micro)(count, a + r * a_row, a_row, a_column, b + t, b_row, depth, bias ? bias + r : 0,                       \
                from ? from + r * SLOTS + t : 0, activate, sums ? sums + t : 0, out + r * SLOTS + t)
    for (long t = 0; t < SLOTS; t += STEP) {
        long r = 0;
        for (; r + ROWS <= rows; r += ROWS) BLOCK(ROWS);
        switch (rows - r) {
            case 5: BLOCK(5); break;
            case 4: BLOCK(4); break;
            case 3: BLOCK(3); break;
            case 2: BLOCK(2); break;
            case 1: BLOCK(1); break;
        }
    }
#undef BLOCK
}

static void NAME(linear)(long rows, const float *a, const float *b, long depth, const float *bias, float *out) {
    NAME(product)(rows, a, depth, 1, b, SLOTS, depth, bias, 0, 0, 0, out);
}

static void NAME(linear_gelu)(long rows, const float *a, const float *b, long depth, const float *bias, float *out) {
    NAME(product)(rows, a, depth, 1, b, SLOTS, depth, bias, 0, 1, 0, out);
}

static void NAME(logits)(long tokens, const float *key, const float *query, long depth, const float *bias, float *out) {
    NAME(product)(tokens, key, 1, SLOTS, query, SLOTS, depth, 0, bias, 0, 0, out);
}

static void NAME(logits_weights)(long tokens, const float *key, const float *query, long depth, const float *bias,
                                 float *sums, float *out) {
    NAME(product)(tokens, key, 1, SLOTS, query, SLOTS, depth, 0, bias, 0, sums, out);
}

static void NAME(values)(long depth, const float *value, const float *weights, long tokens, float *out) {
    NAME(product)(depth, value, SLOTS, 1, weights, SLOTS, tokens, 0, 0, 0, 0, out);
}

static void NAME(add_tap)(long rows, const float *a, const float *b, long depth, const float *bias, float *out) {
    NAME(product)(rows, a, 9 * depth, 1, b, SPAN, depth, bias, bias ? 0 : out, 0, 0, out);
}

/* Scale every token's vector of `depth` rows to length `scale`. */
static void NAME(normalise)(float *rows, long depth, float scale) {
    for (long t = 0; t < SLOTS; t += LANES) {
        floats sum = splat(0.0f);
        for (long c = 0; c < depth; c++) {
            floats x = *(floats *)(rows + c * SLOTS + t);
            sum += x * x;
        }
        floats factor;
        sum = larger(sum, splat(1e-24f));
        for (int l = 0; l < LANES; l++) factor[l] = scale / sqrtf(sum[l]);
        for (long c = 0; c < depth; c++) *(floats *)(rows + c * SLOTS + t) *= factor;
    }
}

/* x += LayerNorm(y), over rows. */
static void NAME(add_norm)(float *x, const float *y, long channels, const float *weight, const float *bias, float eps) {
    for (long t = 0; t < SLOTS; t += LANES) {
        floats mean = splat(0.0f), variance = splat(0.0f), factor;
        for (long c = 0; c < channels; c++) mean += *(const floats *)(y + c * SLOTS + t);
        mean *= splat(1.0f / channels);
        for (long c = 0; c < channels; c++) {
            floats d = *(const floats *)(y + c * SLOTS + t) - mean;
            variance += d * d;
        }
        for (int l = 0; l < LANES; l++) factor[l] = 1.0f / sqrtf(variance[l] / channels + eps);
        for (long c = 0; c < channels; c++)
            *(floats *)(x + c * SLOTS + t) +=
                (*(const floats *)(y + c * SLOTS + t) - mean) * factor * splat(weight[c]) + splat(bias[c]);
    }
}

/* Logits of a head, whose largest is subtracted, to attention weights, not yet divided by their sums over the keys. */
static void NAME(exponentials)(float *logits, long tokens, float *sums) {
    for (long t = 0; t < SLOTS; t += STEP) {
        floats most[VECTORS], sum[VECTORS];
        UNROLL for (int v = 0; v < VECTORS; v++) {
            most[v] = *(floats *)(logits + t + v * LANES);
            sum[v] = splat(0.0f);
        }
        for (long j = 1; j < tokens; j++)
            UNROLL for (int v = 0; v < VECTORS; v++)
                most[v] = larger(most[v], *(floats *)(logits + j * SLOTS + t + v * LANES));
        for (long j = 0; j < tokens; j++)
            UNROLL for (int v = 0; v < VECTORS; v++) {
                floats *logit = (floats *)(logits + j * SLOTS + t + v * LANES);
                floats e = NAME(weight)(*logit - most[v]);
                *logit = e;
                sum[v] += e;
            }
        UNROLL for (int v = 0; v < VECTORS; v++) *(floats *)(sums + t + v * LANES) = sum[v];
    }
}

static void NAME(window)(const struct block *w, const float *bias, float *x, float *scratch) {
    const long channels = w->channels, depth = channels / w->heads;
    float *qkv = scratch, *attended = qkv + 3 * channels * SLOTS, *logits = attended + channels * SLOTS;
    float *sums = logits + SLOTS * SLOTS, *hidden = sums + SLOTS;
    NAME(linear)(3 * channels, w->qkv_weight, x, channels, w->qkv_bias, qkv);
    for (long h = 0; h < w->heads; h++) {
        float *query = qkv + h * depth * SLOTS, *key = query + channels * SLOTS, *value = key + channels * SLOTS;
        float *out = attended + h * depth * SLOTS;
        NAME(normalise)(query, depth, w->scale[h]);
        NAME(normalise)(key, depth, 1.0f);
        const float *head_bias = bias + h * w->tokens * SLOTS;
        if (w->scale[h] > STEEP) {
            NAME(logits)(w->tokens, key, query, depth, head_bias, logits);
            NAME(exponentials)(logits, w->tokens, sums);
        } else {
            memset(sums, 0, SLOTS * sizeof(float));
            NAME(logits_weights)(w->tokens, key, query, depth, head_bias, sums, logits);
        }
        NAME(values)(depth, value, logits, w->tokens, out);
        for (long t = 0; t < SLOTS; t += LANES) {
            floats inverse = 1.0f / *(floats *)(sums + t);
            for (long c = 0; c < depth; c++) *(floats *)(out + c * SLOTS + t) *= inverse;
        }
    }
    NAME(linear)(channels, w->proj_weight, attended, channels, w->proj_bias, qkv);
    NAME(add_norm)(x, qkv, channels, w->norm1_weight, w->norm1_bias, w->eps);
    NAME(linear_gelu)(w->hidden, w->fc1_weight, x, channels, w->fc1_bias, hidden);
    NAME(linear)(channels, w->fc2_weight, hidden, w->hidden, w->fc2_bias, qkv);
    NAME(add_norm)(x, qkv, channels, w->norm2_weight, w->norm2_bias, w->eps);
}

#include "ends.h"
#include "refinement.h"

static const struct level NAME(level) = {LANES * 32,     NAME(load),  NAME(store),  NAME(window),
                                          NAME(convolve), NAME(norm), NAME(embed), NAME(enlarge),
                                          NAME(find_error), NAME(refine)};

#undef floats
#undef loose
#undef four
#undef ints
#undef splat
#undef larger
#undef ROWS
#undef STEP
#undef LARGER
#undef NAME
#undef LANES
#undef VECTORS
