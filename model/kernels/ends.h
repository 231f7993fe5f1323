/* What stands around the blocks, for one instruction set: convolutions, the embedding and the head. Included by block.h,
 * with what is defined there. `halo` names the (window + 2)^2 tokens that a window sees.
 */

/* A convolution of 3x3: `rows` outputs (rows, SLOTS) of tokens with `channels` each. `seen` is (C, SPAN). */
static void NAME(taps)(long rows, long channels, long side, const float *weight, const float *bias,
                       const float *const *halo, float *seen, float *out) {
    const long span = (side + 2) * side;
    const float *tokens[SPAN];
    for (long column = 0; column < 3; column++) {
        for (long i = 0; i < SPAN; i++) tokens[i] = halo[i < span ? i / side * (side + 2) + i % side + column : 0];
        NAME(load)(tokens, SPAN, channels, seen, SPAN);
        for (long row = 0; row < 3; row++)
            NAME(add_tap)(rows, weight + (3 * row + column) * channels, seen + row * side, channels,
                          row + column ? 0 : bias, out);
    }
}

/* A window of a convolution. */
static void NAME(convolve)(const struct convolution *w, const float *const *halo, const float *residual, float *out,
                           float *scratch) {
    const long channels = w->channels, side = w->window;
    float *y = scratch + channels * SPAN, *z = y + channels * SLOTS;
    NAME(taps)(channels, channels, side, w->weight, w->bias, halo, scratch, y);
    if (w->linear_weight) NAME(linear)(channels, w->linear_weight, y, channels, w->linear_bias, z);
    NAME(store)(w->linear_weight ? z : y, side * side, channels, residual, out);
}

/* LayerNorm of tokens (count, C) in place. */
static void NAME(norm)(float *tokens, long count, long channels, const float *weight, const float *bias, float eps,
                       float *scratch) {
    float *x = scratch, *y = x + channels * SLOTS;
    const float *rows[SLOTS];
    for (long i = 0; i < SLOTS; i++) rows[i] = tokens + (i < count ? i : 0) * channels;
    NAME(load)(rows, SLOTS, channels, y, SLOTS);
    memset(x, 0, channels * SLOTS * sizeof(float));
    NAME(add_norm)(x, y, channels, weight, bias, eps);
    NAME(store)(x, count, channels, NULL, tokens);
}

/* A window from pixels (colors) to `shallow` features and embedded tokens, (window^2, C) both. With few colors, all that
 * a pixel sees is one column of a matrix. */
static void NAME(embed)(const struct embedding *w, const float *const *halo, float *shallow, float *out,
                        float *scratch) {
    const long channels = w->channels, side = w->window, colors = w->colors, span = (side + 2) * side;
    float *seen = scratch, *columns = seen + colors * SPAN, *x = columns + 9 * colors * SLOTS;
    float *y = x + channels * SLOTS;
    const float *pixels[SPAN];
    for (long column = 0; column < 3; column++) {
        for (long i = 0; i < SPAN; i++) pixels[i] = halo[i < span ? i / side * (side + 2) + i % side + column : 0];
        NAME(load)(pixels, SPAN, colors, seen, SPAN);
        for (long row = 0; row < 3; row++)
            for (long c = 0; c < colors; c++)
                memcpy(columns + ((3 * row + column) * colors + c) * SLOTS, seen + c * SPAN + row * side,
                       SLOTS * sizeof(float));
    }
    NAME(linear)(channels, w->weight, columns, 9 * colors, w->bias, x);
    NAME(store)(x, side * side, channels, NULL, shallow);
    NAME(linear)(channels, w->linear_weight, x, channels, w->linear_bias, y);
    memset(x, 0, channels * SLOTS * sizeof(float));
    NAME(add_norm)(x, y, channels, w->norm_weight, w->norm_bias, w->eps);
    NAME(store)(x, side * side, channels, NULL, out);
}

/* A window of the head to pixels. `place` is where its first pixel stands in an image whose rows are `stride` floats
 * long, in `out` and in `residual`. */
static void NAME(enlarge)(const struct head *w, const float *const *halo, long place, long stride,
                          const float *residual, float *out, float *scratch) {
    const long run = w->scale * w->colors; /* what a token gives to a row of pixels */
    float *y = scratch + w->channels * SPAN;
    NAME(taps)(w->scale * run, w->channels, w->window, w->weight, w->bias, halo, scratch, y);
    for (long row = 0; row < w->window; row++)
        for (long fine = 0; fine < w->scale; fine++, place += stride)
            NAME(store)(y + fine * run * SLOTS + row * w->window, w->window, run, residual ? residual + place : NULL,
                        out + place);
}
