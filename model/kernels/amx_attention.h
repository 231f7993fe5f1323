/* Window attention on AMX for one precision. Included by amx_block.h, with what is defined there. */

/* Rows `first` and following of the sums, each token's vector at length `scale`, to pairs. One Newton step takes the
 * estimate of 1 / length to float32's last bits. */
static ALWAYS_INLINE void NAME(normalise)(const float *sums, long first, long depth, float scale, uint32_t *out,
                                          long lo) {
    __m512 even[4], odd[4], factor[4];
    for (int v = 0; v < 4; v++) even[v] = odd[v] = _mm512_setzero_ps();
    for (long c = first; c < first + depth; c += 2) {
        const float *row = sums + AT(c, 0);
        for (int v = 0; v < 4; v++) {
            __m512 a = _mm512_load_ps(row + v * TILE), b = _mm512_load_ps(row + v * TILE + 16);
            even[v] = _mm512_fmadd_ps(a, a, even[v]), odd[v] = _mm512_fmadd_ps(b, b, odd[v]);
        }
    }
    for (int v = 0; v < 4; v++) {
        __m512 sum = _mm512_max_ps(_mm512_add_ps(even[v], odd[v]), _mm512_set1_ps(1e-24f)), y = _mm512_rsqrt14_ps(sum);
        __m512 half = _mm512_mul_ps(sum, _mm512_set1_ps(0.5f));
        y = _mm512_mul_ps(y, _mm512_fnmadd_ps(half, _mm512_mul_ps(y, y), _mm512_set1_ps(1.5f)));
        factor[v] = _mm512_mul_ps(y, _mm512_set1_ps(scale));
    }
    for (long c = first; c < first + depth; c += 2, out += 16) {
        const float *row = sums + AT(c, 0);
        for (int v = 0; v < 4; v++)
            NAME(round_pair)(_mm512_mul_ps(_mm512_load_ps(row + v * TILE), factor[v]),
                             _mm512_mul_ps(_mm512_load_ps(row + v * TILE + 16), factor[v]), out + v * TILE, lo);
    }
}

/* A head's query (columns of pairs), key (transposed to rows) and value (rows) as operands. In `high`, a short head's
 * parts are stacked in one tile, hi hi lo against hi lo hi, so that its logits are one product and not three. */
static ALWAYS_INLINE void NAME(prepare_head)(const struct block *w, long head, const struct block_scratch *m) {
    const long depth = w->channels / w->heads, pairs = depth / 2;
    const long query = head * depth, key = query + w->channels, value = key + w->channels;
    const int stacked = PARTS == 2 && 3 * pairs <= 16;
    NAME(normalise)(m->sums, query, depth, w->scale[head], m->query, stacked ? 2 * pairs * 16 : STRIP);
    NAME(normalise)(m->sums, key, depth, 1.0f, m->key, stacked ? pairs * 16 : STRIP);
    for (long p = 0; stacked && p < pairs; p++)
        for (int v = 0; v < 4; v++) {
            _mm512_store_si512(m->query + AT(pairs + p, v), _mm512_load_si512(m->query + AT(p, v)));
            _mm512_store_si512(m->key + AT(2 * pairs + p, v), _mm512_load_si512(m->key + AT(p, v)));
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

/* Logits of 16 keys and all queries, left in the tiles of sums. */
static ALWAYS_INLINE void NAME(logits)(const struct block *w, const struct block_scratch *m, long strip) {
    struct NAME(activation) none = {0};
    clear_sums();
    LOAD_TILE(4, m->key_rows + strip * TILE, 64);
    NAME(multiply)(m->query, &none);
    if (PARTS == 2 && 3 * (w->channels / w->heads / 2) > 16) {
        NAME(multiply)(m->query + STRIP, &none);
        LOAD_TILE(4, m->key_rows + STRIP + strip * TILE, 64);
        NAME(multiply)(m->query, &none);
    }
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
    __m512 inverse[4];
    for (int v = 0; v < 4; v++)
        inverse[v] = _mm512_div_ps(_mm512_set1_ps(1.0f), _mm512_load_ps(m->weighed + AT(depth, v)));
    for (long c = 0; c < depth; c += 2) {
        const float *row = m->weighed + AT(c, 0);
        uint32_t *out = m->attended + AT((head * depth + c) / 2, 0);
        for (int v = 0; v < 4; v++)
            NAME(round_pair)(_mm512_mul_ps(_mm512_load_ps(row + v * TILE), inverse[v]),
                             _mm512_mul_ps(_mm512_load_ps(row + v * TILE + 16), inverse[v]), out + v * TILE, m->lo);
    }
}

/* Where the logits of a strip are put. Strips are counted over all heads; a steep head needs all four of its own. */
static ALWAYS_INLINE float *NAME(logits_of)(const struct block *w, const struct block_scratch *m, long strip) {
    return m->logits + strip % (w->scale[strip / 4] > STEEP ? 4 : 2) * STRIP;
}

/* All heads. A vector instruction that reads what a tile instruction has just stored waits for some hundred cycles, and
 * so does the reverse. That is why the logits of two strips ahead stay in the tiles while the exponentials of one are
 * computed, values are weighed during the next head, and a head is prepared while the one before is computed. `bias` is
 * (heads, 4 strips of keys); `out` is what the block will write. */
static void NAME(attend)(const struct block *w, const float *bias, int clamp, const float *out,
                         const struct block_scratch *m) {
    const long depth = w->channels / w->heads, heads = w->heads;
    NAME(prepare_head)(w, 0, m);
    NAME(logits)(w, m, 0);
    store_sums(NAME(logits_of)(w, m, 0), 4 * TILE, 64);
    NAME(logits)(w, m, 1);
    for (long i = 0; i < 4 * heads; i++, bias += STRIP) {
        const long h = i / 4, strip = i % 4;
        const int steep = w->scale[h] > STEEP;
        const float *logits = NAME(logits_of)(w, m, i);
        uint32_t *weights = m->weights[h % 2];
        prefetch_tokens(m->next, i * SLOTS / (4 * heads), (i + 1) * SLOTS / (4 * heads), w->channels);
        prefetch_to_write(out, w->tokens * w->channels, i, 4 * heads);
        if (steep && strip == 3) NAME(steep_exponentials)(m->logits, bias - 3 * STRIP, weights);
        if (i + 1 < 4 * heads) store_sums(NAME(logits_of)(w, m, i + 1), 4 * TILE, 64);
        if (strip == 1 && h) NAME(weigh_values)(m->value[(h - 1) % 2], m->weights[(h - 1) % 2], depth, m->weighed);
        if (i + 2 < 4 * heads) NAME(logits)(w, m, (strip + 2) % 4);
        if (strip == 1 && h + 1 < heads) NAME(prepare_head)(w, h + 1, m);
        if (!steep && clamp) NAME(exponentials)(logits, bias, 1, weights + AT(8 * strip, 0));
        if (!steep && !clamp) NAME(exponentials)(logits, bias, 0, weights + AT(8 * strip, 0));
        if (strip == 3 && h) NAME(finish_head)(m, h - 1, depth);
    }
    NAME(weigh_values)(m->value[(heads - 1) % 2], m->weights[(heads - 1) % 2], depth, m->weighed);
    NAME(finish_head)(m, heads - 1, depth);
}
