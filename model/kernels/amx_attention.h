/* Window attention on AMX for one precision. Included by amx_block.h, with what is defined there. */

/* 1 / |row vector| of 16 tokens' query or key, times `scale`; one Newton step takes the estimate to float32's last bits. */
static ALWAYS_INLINE __m512 NAME(inverse_length)(const float *rows, long first, long depth, int vector, float scale) {
    __m512 even = _mm512_setzero_ps(), odd = even;
    for (long c = first; c < first + depth; c += 2) {
        __m512 a = _mm512_load_ps(rows + AT(c, vector)), b = _mm512_load_ps(rows + AT(c + 1, vector));
        even = _mm512_fmadd_ps(a, a, even), odd = _mm512_fmadd_ps(b, b, odd);
    }
    __m512 sum = _mm512_max_ps(_mm512_add_ps(even, odd), _mm512_set1_ps(1e-24f)), y = _mm512_rsqrt14_ps(sum);
    __m512 half = _mm512_mul_ps(sum, _mm512_set1_ps(0.5f));
    y = _mm512_mul_ps(y, _mm512_fnmadd_ps(half, _mm512_mul_ps(y, y), _mm512_set1_ps(1.5f)));
    return _mm512_mul_ps(y, _mm512_set1_ps(scale));
}

/* Rows `first` and following of the sums, times `factor`, to pairs. */
static ALWAYS_INLINE void NAME(scale_pairs)(const float *sums, long first, long depth, int vector, __m512 factor,
                                            uint32_t *out, long lo) {
    for (long c = 0; c < depth; c += 2)
        NAME(round_pair)(_mm512_mul_ps(_mm512_load_ps(sums + AT(first + c, vector)), factor),
                         _mm512_mul_ps(_mm512_load_ps(sums + AT(first + c + 1, vector)), factor),
                         out + AT(c / 2, vector), lo);
}

/* A head's query (columns of pairs), key (transposed to rows) and value (rows) as operands. In `high`, a short head's
 * parts are stacked in one tile, hi hi lo against hi lo hi, so that its logits are one product and not three. */
static ALWAYS_INLINE void NAME(prepare_head)(const struct block *w, long head, const struct block_scratch *m) {
    const long depth = w->channels / w->heads, pairs = depth / 2;
    const long query = head * depth, key = query + w->channels, value = key + w->channels;
    const int stacked = PARTS == 2 && 3 * pairs <= 16;
    for (int v = 0; v < 4; v++) {
        NAME(scale_pairs)(m->sums, query, depth, v, NAME(inverse_length)(m->sums, query, depth, v, w->scale[head]),
                          m->query, stacked ? 2 * pairs * 16 : STRIP);
        NAME(scale_pairs)(m->sums, key, depth, v, NAME(inverse_length)(m->sums, key, depth, v, 1.0f), m->key,
                          stacked ? pairs * 16 : STRIP);
        for (long p = 0; stacked && p < pairs; p++) {
            _mm512_store_si512(m->query + AT(pairs + p, v), _mm512_load_si512(m->query + AT(p, v)));
            _mm512_store_si512(m->key + AT(2 * pairs + p, v), _mm512_load_si512(m->key + AT(p, v)));
        }
    }
    for (int t = 0; t < (PARTS == 2 && !stacked ? 8 : 4); t++)
        transpose_tile(m->key + t * TILE, m->key_rows + t * TILE);
    uint16_t *rows = m->value[head % 2];
    for (long c = 0; c < depth; c++)
        for (int k = 0; k < 2; k++)
            NAME(put_row)(_mm512_load_ps(m->sums + AT(value + c, 2 * k)),
                          _mm512_load_ps(m->sums + AT(value + c, 2 * k + 1)),
                          rows + (c / 16 * 2 + k) * 2 * TILE + c % 16 * 32, VALUE_LO);
}

/* Logits of 16 keys and all queries. */
static ALWAYS_INLINE void NAME(logits)(const struct block *w, const struct block_scratch *m, int strip, float *out) {
    struct NAME(activation) none = {0};
    clear_sums();
    LOAD_TILE(4, m->key_rows + strip * TILE, 64);
    NAME(multiply)(m->query, &none);
    if (PARTS == 2 && 3 * (w->channels / w->heads / 2) > 16) {
        NAME(multiply)(m->query + STRIP, &none);
        LOAD_TILE(4, m->key_rows + STRIP + strip * TILE, 64);
        NAME(multiply)(m->query, &none);
    }
    store_sums(out, 4 * TILE, 64);
}

/* Attention weights of 16 keys from their logits, not yet divided by the sums over keys. What is cut off here is no
 * error of the sums: a row of ones among the values adds up exactly what is multiplied. Cutting to bfloat16 takes off
 * 2^-9 on average, which the factor puts on. */
static ALWAYS_INLINE void NAME(exponentials)(const float *logits, const float *bias, int clamp, uint32_t *out) {
    const float factor = PARTS == 1 ? 1.001953125f : 1.0f;
    const __m512 least = _mm512_set1_ps(LEAST_LOGIT);
    for (int v = 0; v < 4; v++)
        for (int i = 0; i < 16; i += 2) {
            __m512 a = _mm512_add_ps(_mm512_load_ps(logits + AT(i, v)), _mm512_load_ps(bias + AT(i, v)));
            __m512 b = _mm512_add_ps(_mm512_load_ps(logits + AT(i + 1, v)), _mm512_load_ps(bias + AT(i + 1, v)));
            if (clamp) a = _mm512_max_ps(least, a), b = _mm512_max_ps(least, b);
            NAME(put_pair)(NAME(exp2v)(a, factor), NAME(exp2v)(b, factor), 0, 0, out + AT(i / 2, v), WEIGHTS_LO);
        }
}

/* The same for all keys, less the largest logit of each query. */
static void NAME(steep_exponentials)(float *logits, const float *bias, uint32_t *out) {
    const __m512 least = _mm512_set1_ps(LEAST_LOGIT);
    for (int v = 0; v < 4; v++) {
        __m512 most = _mm512_set1_ps(-1e30f);
        for (int j = 0; j < SLOTS; j++) {
            float *logit = logits + AT(j, v);
            __m512 sum = _mm512_add_ps(_mm512_load_ps(logit), _mm512_load_ps(bias + AT(j, v)));
            most = _mm512_max_ps(most, sum);
            _mm512_store_ps(logit, sum);
        }
        for (int j = 0; j < SLOTS; j += 2) {
            __m512 a = _mm512_max_ps(least, _mm512_sub_ps(_mm512_load_ps(logits + AT(j, v)), most));
            __m512 b = _mm512_max_ps(least, _mm512_sub_ps(_mm512_load_ps(logits + AT(j + 1, v)), most));
            NAME(round_pair)(NAME(exp2v)(a, 1.0f), NAME(exp2v)(b, 1.0f), out + AT(j / 2, v), WEIGHTS_LO);
        }
    }
}

/* Values times weights: rows of the head's output, and behind them the row of the weights' sums. */
static ALWAYS_INLINE void NAME(weigh_values)(const uint16_t *value, const uint32_t *weights, long depth, float *out) {
    struct NAME(activation) none = {0};
    for (long r = 0; r < depth / 16 + 1; r++, value += 4 * TILE) {
        clear_sums();
        for (int k = 0; k < 2; k++) { /* 32 keys */
            LOAD_TILE(4, value + k * 2 * TILE, 64);
            NAME(multiply)(weights + k * STRIP, &none);
            if (PARTS == 2) {
                NAME(multiply)(weights + WEIGHTS_LO + k * STRIP, &none);
                LOAD_TILE(4, value + VALUE_LO + k * 2 * TILE, 64);
                NAME(multiply)(weights + k * STRIP, &none);
            }
        }
        store_sums(out + r * STRIP, 4 * TILE, 64);
    }
}

/* A head's output, divided by the sums, to its rows of the next operand. */
static ALWAYS_INLINE void NAME(finish_head)(const struct block_scratch *m, long head, long depth) {
    for (int v = 0; v < 4; v++) {
        __m512 inverse = _mm512_div_ps(_mm512_set1_ps(1.0f), _mm512_load_ps(m->weighed + AT(depth, v)));
        for (long c = 0; c < depth; c += 2)
            NAME(round_pair)(_mm512_mul_ps(_mm512_load_ps(m->weighed + AT(c, v)), inverse),
                             _mm512_mul_ps(_mm512_load_ps(m->weighed + AT(c + 1, v)), inverse),
                             m->attended + AT((head * depth + c) / 2, v), m->lo);
    }
}

/* All heads. The products of the next strip or head are issued before the exponentials that do not need them: a change
 * from one unit to the other costs some 700 cycles otherwise. `bias` is (heads, 4 strips of keys). */
static void NAME(attend)(const struct block *w, const float *bias, int clamp, const struct block_scratch *m) {
    const long depth = w->channels / w->heads;
    NAME(prepare_head)(w, 0, m);
    NAME(logits)(w, m, 0, m->logits);
    for (long h = 0; h < w->heads; h++, bias += 4 * STRIP) {
        const int steep = w->scale[h] > STEEP;
        for (int strip = 0; strip < 4; strip++) {
            if (strip < 3)
                NAME(logits)(w, m, strip + 1, m->logits + (steep ? strip + 1 : (strip + 1) % 2) * STRIP);
            else if (steep)
                NAME(steep_exponentials)(m->logits, bias, m->weights);
            if (strip == 3 && h + 1 < w->heads) {
                NAME(prepare_head)(w, h + 1, m);
                NAME(logits)(w, m, 0, m->logits);
            }
            const float *done = m->logits + strip % 2 * STRIP, *strip_bias = bias + strip * STRIP;
            uint32_t *to = m->weights + AT(8 * strip, 0);
            if (!steep && clamp) NAME(exponentials)(done, strip_bias, 1, to);
            if (!steep && !clamp) NAME(exponentials)(done, strip_bias, 0, to);
            if (strip == 0 && h) NAME(finish_head)(m, h - 1, depth);
        }
        NAME(weigh_values)(m->value[h % 2], m->weights, depth, m->weighed);
    }
    NAME(finish_head)(m, w->heads - 1, depth);
}
