/* The block for one instruction set. Included by block.c with these defined:
 *   NAME(x)  the name of x for this instruction set
 *   LANES    floats in a vector
 *   VECTORS  vectors of a row that a micro kernel keeps in registers
 *
 * Within a window everything is feature-major: row c holds channel c of all tokens in SLOTS floats; what stands behind
 * the last token is finite and reaches no other. So matrix products read vectors of tokens, and softmax and LayerNorm never add across a vector.
 */

typedef float NAME(floats) __attribute__((vector_size(LANES * 4), aligned(LANES * 4)));
typedef int32_t NAME(ints) __attribute__((vector_size(LANES * 4), aligned(LANES * 4)));
#define floats NAME(floats)
#define ints NAME(ints)
#define ROWS 6
#define STEP (LANES * VECTORS)

static ALWAYS_INLINE floats NAME(splat)(float value) { return value - (floats){0}; }
#define splat NAME(splat)

static ALWAYS_INLINE floats NAME(larger)(floats a, floats b) {
    return (floats)(((ints)a & (a > b)) | ((ints)b & ~(a > b)));
}
#define larger NAME(larger)

/* 2^x to 1e-7, relative; x below -100 gives 2^-100, which is nothing beside 1 and no denormal. Adding MAGIC leaves round(x) in the lowest bits. */
static ALWAYS_INLINE floats NAME(exp2v)(floats x) {
    const floats magic = splat(12582912.0f);
    x = larger(x, splat(-100.0f));
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

/* `rows` rows of out = start + a b for STEP tokens. Element (o, k) of a is a[o * a_row + k * a_column]. The start is
 * `from` (a row each, as out), or else the number `bias[o]`, or else zero. */
static ALWAYS_INLINE void NAME(micro)(int rows, const float *a, long a_row, long a_column, const float *b, long depth,
                                      const float *bias, const float *from, int activate, float *out) {
    floats sum[ROWS][VECTORS];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < VECTORS; v++)
            sum[r][v] = from ? *(const floats *)(from + r * SLOTS + v * LANES) : splat(bias ? bias[r] : 0.0f);
    for (long k = 0; k < depth; k++) {
        floats column[VECTORS];
        UNROLL for (int v = 0; v < VECTORS; v++) column[v] = *(const floats *)(b + k * SLOTS + v * LANES);
        UNROLL for (int r = 0; r < rows; r++) {
            floats factor = splat(a[r * a_row + k * a_column]);
            UNROLL for (int v = 0; v < VECTORS; v++) sum[r][v] += factor * column[v];
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < VECTORS; v++)
            *(floats *)(out + r * SLOTS + v * LANES) = activate ? NAME(gelu)(sum[r][v]) : sum[r][v];
}

/* The same for any number of rows and all SLOTS tokens. */
static ALWAYS_INLINE void NAME(product)(long rows, const float *a, long a_row, long a_column, const float *b,
                                        long depth, const float *bias, const float *from, int activate, float *out) {
#define BLOCK(count)                                                                                                   \
    NAME(micro)(count, a + r * a_row, a_row, a_column, b + t, depth, bias ? bias + r : 0,                              \
                from ? from + r * SLOTS + t : 0, activate, out + r * SLOTS + t)
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
    NAME(product)(rows, a, depth, 1, b, depth, bias, 0, 0, out);
}

static void NAME(linear_gelu)(long rows, const float *a, const float *b, long depth, const float *bias, float *out) {
    NAME(product)(rows, a, depth, 1, b, depth, bias, 0, 1, out);
}

static void NAME(logits)(long tokens, const float *key, const float *query, long depth, const float *bias, float *out) {
    NAME(product)(tokens, key, 1, SLOTS, query, depth, 0, bias, 0, out);
}

static void NAME(values)(long depth, const float *value, const float *weights, long tokens, float *out) {
    NAME(product)(depth, value, SLOTS, 1, weights, tokens, 0, 0, 0, out);
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
        for (int l = 0; l < LANES; l++) factor[l] = scale / fmaxf(sqrtf(sum[l]), 1e-12f);
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

/* Attention weights of a head, not yet divided by their sum over the keys, whose inverse goes to `inverse`. */
static void NAME(exponentials)(float *logits, long tokens, float *inverse) {
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
                floats e = NAME(exp2v)((*logit - most[v]) * splat(LOG2_E));
                *logit = e;
                sum[v] += e;
            }
        UNROLL for (int v = 0; v < VECTORS; v++) *(floats *)(inverse + t + v * LANES) = 1.0f / sum[v];
    }
}

static void NAME(window)(const struct block *w, const float *bias, float *x, float *scratch) {
    const long channels = w->channels, depth = channels / w->heads;
    float *qkv = scratch, *attended = qkv + 3 * channels * SLOTS, *logits = attended + channels * SLOTS;
    float *inverse = logits + SLOTS * SLOTS, *hidden = inverse + SLOTS;
    NAME(linear)(3 * channels, w->qkv_weight, x, channels, w->qkv_bias, qkv);
    for (long h = 0; h < w->heads; h++) {
        float *query = qkv + h * depth * SLOTS, *key = query + channels * SLOTS, *value = key + channels * SLOTS;
        float *out = attended + h * depth * SLOTS;
        NAME(normalise)(query, depth, w->scale[h]);
        NAME(normalise)(key, depth, 1.0f);
        NAME(logits)(w->tokens, key, query, depth, bias + h * w->tokens * SLOTS, logits);
        NAME(exponentials)(logits, w->tokens, inverse);
        NAME(values)(depth, value, logits, w->tokens, out);
        for (long c = 0; c < depth; c++)
            for (long t = 0; t < SLOTS; t += LANES)
                *(floats *)(out + c * SLOTS + t) *= *(floats *)(inverse + t);
    }
    NAME(linear)(channels, w->proj_weight, attended, channels, w->proj_bias, qkv);
    NAME(add_norm)(x, qkv, channels, w->norm1_weight, w->norm1_bias, w->eps);
    NAME(linear_gelu)(w->hidden, w->fc1_weight, x, channels, w->fc1_bias, hidden);
    NAME(linear)(channels, w->fc2_weight, hidden, w->hidden, w->fc2_bias, qkv);
    NAME(add_norm)(x, qkv, channels, w->norm2_weight, w->norm2_bias, w->eps);
}

#undef floats
#undef ints
#undef splat
#undef larger
#undef ROWS
#undef STEP
#undef NAME
#undef LANES
#undef VECTORS
