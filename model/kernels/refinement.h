/* Back-projection and the range limit (model/refinement.py), for one instruction set. Included by block.h. Rows of images
 * are lines of floats, pixel by pixel; a line with a border repeats its first and last pixel there.
 */

/* The nearest row inside. */
static inline long NAME(inside)(long row, long rows) { return row < 0 ? 0 : row < rows ? row : rows - 1; }

/* Repeat the first and the last pixel of `line`, which begins `border` pixels behind its memory's start. */
static void NAME(repeat_ends)(float *line, long pixels, long colors, long border) {
    for (long i = 1; i <= border; i++) {
        memcpy(line - i * colors, line, colors * sizeof(float));
        memcpy(line + (pixels - 1 + i) * colors, line + (pixels - 1) * colors, colors * sizeof(float));
    }
}

/* Copy pixel x of `dense` to pixel x * scale + phase of `line`. */
static inline void NAME(place)(const float *restrict dense, long pixels, long colors, long scale, long phase,
                               float *restrict line) {
    if (colors == 3)
        for (long x = 0; x < pixels; x++)
            for (long c = 0; c < 3; c++) line[(x * scale + phase) * 3 + c] = dense[x * 3 + c];
    else
        for (long x = 0; x < pixels; x++)
            for (long c = 0; c < colors; c++) line[(x * scale + phase) * colors + c] = dense[x * colors + c];
}

/* A row of the input minus the reduced image's row. `scratch` is a line of the image with a border. */
static void NAME(find_error)(const struct refinement *w, const float *pixels, const float *image, long height,
                             long width, long row, float *error, float *scratch) {
    float *restrict seen = scratch + w->border * w->colors;
    const long colors = w->colors, scale = w->scale, fine = scale * width * colors;
    for (long k = 0; k < w->taps; k += 4) { /* the weights behind the last are 0 */
        const float *rows[4], *weight = w->reduce + k;
        for (long i = 0; i < 4; i++)
            rows[i] = image + NAME(inside)(row * scale - w->border + k + i, height * scale) * fine;
        for (long i = 0; i < fine; i++)
            seen[i] = (k ? seen[i] : 0) + weight[0] * rows[0][i] + weight[1] * rows[1][i] + weight[2] * rows[2][i] +
                      weight[3] * rows[3][i];
    }
    NAME(repeat_ends)(seen, scale * width, colors, w->border);
    for (long x = 0; x < width; x++) {
        const float *first = seen + (x * scale - w->border) * colors;
        for (long c = 0; c < colors; c++) {
            float sum = 0;
            for (long k = 0; k < scale + 2 * w->border; k++) sum += w->reduce[k] * first[k * colors + c];
            error[(row * width + x) * colors + c] = pixels[(row * width + x) * colors + c] - sum;
        }
    }
}

/* The least and the largest of the input within `radius` pixels of each of a row; `columns` is a line with a border. */
static void NAME(find_extremes)(const float *pixels, long height, long width, long colors, long row, long radius,
                                float *restrict columns, float *restrict low, float *restrict high) {
    const long line = width * colors;
    for (int sign = -1; sign <= 1; sign += 2) {
        for (long k = -radius; k <= radius; k++) {
            const float *other = pixels + NAME(inside)(row + k, height) * line;
            for (long i = 0; i < line; i++) {
                float value = sign * other[i];
                columns[i] = k == -radius || value > columns[i] ? value : columns[i];
            }
        }
        NAME(repeat_ends)(columns, width, colors, radius);
        float *restrict out = sign < 0 ? low : high;
        for (long i = 0; i < line; i++) {
            float most = columns[i];
            for (long k = 1; k <= radius; k++) {
                float left = columns[i - k * colors], right = columns[i + k * colors];
                most = left > most ? left : most, most = right > most ? right : most;
            }
            out[i] = sign * most;
        }
    }
}

/* Least and largest value of the pixels that a row of the input becomes: `low` and `high` are lines of the image. */
static void NAME(find_bounds)(const struct refinement *w, const float *pixels, long height, long width, long row,
                              float *memory, float *low, float *high) {
    const long line = width * w->colors, padded = line + 2 * FAR * w->colors;
    float *columns = memory + FAR * w->colors, *near_low = memory + padded, *near_high = near_low + line;
    float *far_low = near_high + line, *far_high = far_low + line;
    NAME(find_extremes)(pixels, height, width, w->colors, row, NEAR, columns, near_low, near_high);
    if (w->slack > 0)
        NAME(find_extremes)(pixels, height, width, w->colors, row, FAR, columns, far_low, far_high);
    for (long i = 0; i < line; i++) {
        float margin = w->margin * (near_high[i] - near_low[i]);
        if (w->slack > 0) {
            float far = far_high[i] - far_low[i];
            margin += far < w->slack ? far : w->slack;
        }
        near_low[i] -= margin, near_high[i] += margin;
    }
    for (long phase = 0; phase < w->scale; phase++) {
        NAME(place)(near_low, width, w->colors, w->scale, phase, low);
        NAME(place)(near_high, width, w->colors, w->scale, phase, high);
    }
}

/* Refine in place what `rows` rows of the input, from `first` on, became: `pixels` and `error` (height, width, colors),
 * `image` `scale` times as large. `scratch` is as large as swin_refine says. */
static void NAME(refine)(const struct refinement *w, const float *pixels, const float *error, float *image, long height,
                         long width, long first, long rows, float *scratch) {
    const long colors = w->colors, scale = w->scale, line = width * colors, fine = scale * line;
    float *enlarged = scratch, *low = enlarged + (BAND + 4) * fine, *high = low + fine;
    float *seen = high + fine + 2 * colors, *phases = seen + line + 2 * colors, *memory = phases + line;
    for (long k = 0; w->reduce && k < rows + 4; k++) {
        memcpy(seen, error + NAME(inside)(first + k - 2, height) * line, line * sizeof(float));
        NAME(repeat_ends)(seen, width, colors, 2);
        for (long phase = 0; phase < scale; phase++) {
            const float *restrict weight = w->enlarge + 5 * phase, *restrict from = seen - 2 * colors;
            float *restrict to = phases;
            for (long i = 0; i < line; i++)
                to[i] = weight[0] * from[i] + weight[1] * from[i + colors] + weight[2] * from[i + 2 * colors] +
                        weight[3] * from[i + 3 * colors] + weight[4] * from[i + 4 * colors];
            NAME(place)(phases, width, colors, scale, phase, enlarged + k * fine);
        }
    }
    for (long row = first; row < first + rows; row++) {
        if (w->slack >= 0) NAME(find_bounds)(w, pixels, height, width, row, memory, low, high);
        for (long phase = 0; phase < scale; phase++) {
            const float *restrict weight = w->enlarge + 5 * phase, *restrict added = enlarged + (row - first) * fine;
            float *restrict to = image + (row * scale + phase) * fine;
            if (w->reduce)
                for (long i = 0; i < fine; i++)
                    to[i] += weight[0] * added[i] + weight[1] * added[i + fine] + weight[2] * added[i + 2 * fine] +
                             weight[3] * added[i + 3 * fine] + weight[4] * added[i + 4 * fine];
            if (w->slack >= 0)
                for (long i = 0; i < fine; i++) { /* NaN stays NaN, and infinity becomes it */
                    float value = to[i] < low[i] ? low[i] : to[i];
                    to[i] = (value > high[i] ? high[i] : value) + 0 * to[i];
                }
        }
    }
}
