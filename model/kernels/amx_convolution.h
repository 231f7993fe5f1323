/* A convolution on AMX for one precision. Included by amx.c with PARTS and NAME defined as in amx_block.h.
 *
 * Token-major: the window's tokens are rows, the packed weights columns. Each row holds the three tokens side by side that
 * a row of the convolution sees, so what it sees of the window is `side`^2 rows one behind the other.
 */

/* Sums of 16 outputs += rows of 64 tokens times one tile of packed columns (PARTS, 16, 32). */
static ALWAYS_INLINE void NAME(multiply_tokens)(const uint16_t *rows, long lo, long stride, const uint32_t *columns) {
    LOAD_TILE(4, columns, 64);
    multiply_rows(rows, 16 * stride, 2 * stride);
    if (PARTS == 2) {
        multiply_rows(rows + lo, 16 * stride, 2 * stride);
        LOAD_TILE(4, columns + TILE, 64);
        multiply_rows(rows, 16 * stride, 2 * stride);
    }
}

/* Sums of two strips of 16 outputs, whose columns are `next` words apart, += rows of 32 tokens times them. */
static ALWAYS_INLINE void NAME(square_of_tokens)(const uint16_t *rows, long lo, long stride, const uint32_t *columns,
                                                 long next) {
    LOAD_TILE(4, rows, 2 * stride);
    LOAD_TILE(5, rows + 16 * stride, 2 * stride);
    if (PARTS == 2) {
        LOAD_TILE(6, columns + TILE, 64);
        LOAD_TILE(7, columns + next + TILE, 64);
        multiply_square();
    }
    LOAD_TILE(6, columns, 64);
    LOAD_TILE(7, columns + next, 64);
    multiply_square();
    if (PARTS == 2) {
        LOAD_TILE(4, rows + lo, 2 * stride);
        LOAD_TILE(5, rows + lo + 16 * stride, 2 * stride);
        multiply_square();
    }
}

/* Sums (64, width) of 64 rows at `taps` places, each times its columns: (outputs / 16, taps, depths, PARTS, 16, 32). */
static void NAME(multiply_places)(const uint16_t *rows, const long *places, long taps, long lo, long stride,
                                  const uint32_t *columns, long width, float *sums) {
    const long depths = stride / 32, next = taps * depths * PARTS * TILE, paired = width / 32 * 2;
    for (long half = 0; half < SLOTS; half += SLOTS / 2)
        for (long n = 0; n < paired; n += 2) {
            clear_sums();
            for (long i = 0; i < taps * depths; i++)
                NAME(square_of_tokens)(rows + places[i / depths] + half * stride + i % depths * 32, lo, stride,
                                       columns + n * next + i * PARTS * TILE, next);
            float *out = sums + half * width + 16 * n;
            STORE_TILE(0, out, 4 * width);
            STORE_TILE(1, out + 16, 4 * width);
            STORE_TILE(2, out + 16 * width, 4 * width);
            STORE_TILE(3, out + 16 * width + 16, 4 * width);
        }
    if (paired == width / 16) return;
    clear_sums();
    for (long i = 0; i < taps * depths; i++)
        NAME(multiply_tokens)(rows + places[i / depths] + i % depths * 32, lo, stride,
                              columns + paired * next + i * PARTS * TILE);
    store_sums(sums + 16 * paired, 64 * width, 4 * width);
}

/* A row of the halo, `side` + 2 tokens, to the rows of a tile: what the three columns of the convolution see of it from
 * each of `side` places. */
static ALWAYS_INLINE void NAME(spread_row)(const float *const *tokens, const struct convolution *w,
                                           const struct convolution_scratch *m, uint16_t *rows) {
    const long channels = w->channels, seen = 3 * channels;
    for (long x = 0; x < w->window + 2; x++)
        for (long c = 0; c < channels; c += 32) /* what a token writes too much, the next one overwrites */
            NAME(put_row)(_mm512_maskz_loadu_ps(first_lanes(channels - c), tokens[x] + c),
                          _mm512_maskz_loadu_ps(first_lanes(channels - c - 16), tokens[x] + c + 16),
                          m->halo_row + x * channels + c, m->halo_lo);
    for (long part = 0; part < PARTS; part++)
        for (long x = 0; x < w->window; x++) {
            const uint16_t *from = m->halo_row + part * m->halo_lo + x * channels;
            uint16_t *to = rows + part * m->lo + x * m->stride;
            long c = 0;
            for (; c + 32 <= seen; c += 32) _mm512_store_si512(to + c, _mm512_loadu_si512(from + c));
            if (c < seen) _mm512_store_si512(to + c, _mm512_maskz_loadu_epi16((1u << (seen - c)) - 1, from + c));
        }
}

/* The sums plus the bias of the 3x3 convolution, as rows of the linear layer behind it, with its constant 1. */
static ALWAYS_INLINE void NAME(put_linear_rows)(const struct convolution *w, const struct convolution_scratch *m) {
    const long channels = w->channels, width = m->width;
    for (long t = 0; t < w->window * w->window; t++) {
        uint16_t *row = m->linear_rows + t * m->linear_stride;
        for (long c = 0; c < channels; c += 32) {
            const float *sums = m->sums + t * width + c;
            const __mmask16 first = first_lanes(channels - c), second = first_lanes(channels - c - 16);
            NAME(put_row)(
                _mm512_add_ps(_mm512_maskz_loadu_ps(first, sums), _mm512_maskz_loadu_ps(first, w->bias + c)),
                _mm512_add_ps(_mm512_maskz_loadu_ps(second, sums + 16), _mm512_maskz_loadu_ps(second, w->bias + c + 16)),
                row + c, m->linear_lo);
        }
        row[channels] = ONE;
        row[channels + 1] = PARTS == 1 ? ONE : 0; /* times what the bias's bfloat16 leaves */
    }
}

/* A window of the convolution. */
static void NAME(convolution_window)(const struct work *work, long index, void *memory) {
    const struct convolution *w = work->convolution;
    const struct convolution_scratch *m = memory;
    const long channels = w->channels, side = w->window, tokens = side * side, seen = (side + 2) * (side + 2);
    const long width = m->width;
    const float *residual = work->residual + index * tokens * channels;
    float *out = work->out + index * tokens * channels;
    for (long y = 0; y < side + 2; y++) {
        prefetch_to_read(residual, tokens * channels, y, side + 2);
        prefetch_to_write(out, tokens * channels, y, side + 2);
        const float *halo[EDGE];
        for (long x = 0; x < side + 2; x++) {
            long row = work->table[index * seen + y * (side + 2) + x];
            halo[x] = row < 0 ? m->zeros : work->in + row * channels;
        }
        NAME(spread_row)(halo, w, m, m->rows + y * side * m->stride);
    }
    const long places[3] = {0, side * m->stride, 2 * side * m->stride};
    NAME(multiply_places)(m->rows, places, 3, m->lo, m->stride, w->packed->columns, width, m->sums);
    if (w->linear_weight) {
        const long none = 0;
        NAME(put_linear_rows)(w, m);
        NAME(multiply_places)(m->linear_rows, &none, 1, m->linear_lo, m->linear_stride, w->packed->linear_columns,
                              width, m->sums);
    }
    for (long t = 0; t < tokens; t++)
        for (long c = 0; c < channels; c += 16) {
            const __mmask16 lanes = first_lanes(channels - c);
            __m512 sum = _mm512_add_ps(_mm512_load_ps(m->sums + t * width + c),
                                       _mm512_maskz_loadu_ps(lanes, residual + t * channels + c));
            if (!w->linear_weight) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(lanes, w->bias + c));
            _mm512_mask_storeu_ps(out + t * channels + c, lanes, sum);
        }
    normalise_tokens(work, out, m->normalised);
}
