/* Weights in the order in which AMX reads them. Included by amx.c. */

/* A matrix of weights (outputs, inputs), whose rows are `stride` apart, and its bias as one or two further inputs. */
struct matrix {
    const float *weight, *bias; /* bias may be null */
    long stride, outputs, inputs;
};

/* To bfloat16, to nearest, ties to even; a NaN stays one. */
static uint16_t round_to_bfloat16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (isnan(value)) return bits >> 16 | 0x40;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

static float from_bfloat16(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* An entry's hi part (0) or lo part (1). With one part the bias takes two inputs, hi and lo; it is always exact so. */
static uint16_t entry(const struct matrix *m, long output, long input, int part, int parts) {
    float value;
    if (output >= m->outputs) return 0;
    if (input < m->inputs)
        value = m->weight[output * m->stride + input];
    else if (!m->bias || input > m->inputs + (parts == 1))
        return 0;
    else
        value = m->bias[output], part += input > m->inputs;
    uint16_t hi = round_to_bfloat16(value);
    return part ? round_to_bfloat16(value - from_bfloat16(hi)) : hi;
}

static long inputs_of(const struct matrix *m) { return (m->inputs + (m->bias ? 2 : 0) + 31) / 32; }

static size_t packed_bytes(const struct matrix *m, int parts) {
    return (m->outputs + 15) / 16 * inputs_of(m) * parts * TILE * sizeof(uint32_t);
}

/* As rows: (outputs / 16, inputs / 32, parts, 16, 32). */
static const uint16_t *pack_rows(const struct matrix *m, int parts, uint16_t *out) {
    const uint16_t *start = out;
    for (long n = 0; n < m->outputs; n += 16)
        for (long k = 0; k < 32 * inputs_of(m); k += 32)
            for (int part = 0; part < parts; part++)
                for (long i = 0; i < 16; i++)
                    for (long j = 0; j < 32; j++) *out++ = entry(m, n + i, k + j, part, parts);
    return start;
}

/* As columns: (outputs / 16, taps, inputs / 32, parts, 16 pairs, 16). The weights of a tap follow one another. */
static const uint32_t *pack_columns(const struct matrix *m, long taps, int parts, uint16_t *out) {
    const uint16_t *start = out;
    for (long n = 0; n < m->outputs; n += 16)
        for (long tap = 0; tap < taps; tap++) {
            struct matrix one = *m;
            one.weight += tap * m->inputs;
            for (long k = 0; k < 32 * inputs_of(m); k += 32)
                for (int part = 0; part < parts; part++)
                    for (long pair = 0; pair < 16; pair++)
                        for (long i = 0; i < 32; i++)
                            *out++ = entry(&one, n + i / 2, k + 2 * pair + i % 2, part, parts);
        }
    return (const uint32_t *)start;
}

/* Position bias and mask, (maps, tokens of key, SLOTS of query), to strips; keys that are no tokens get PADDING. */
static const float *pack_bias(const float *bias, long maps, long tokens, float *out) {
    for (long map = 0; map < maps; map++)
        for (long key = 0; key < SLOTS; key++)
            for (long query = 0; query < SLOTS; query++)
                out[map * 4 * STRIP + AT(key, query / 16) + query % 16] =
                    key < tokens ? bias[(map * tokens + key) * SLOTS + query] : PADDING;
    return out;
}

/* A block's weights for `fast` (one part) or `high` (two), to be freed by swin_free_packed. `kinds` says for how many
 * kinds of windows there is a bias. Null where memory is short, or the block or the processor does not fit. */
void *swin_pack_block(const struct block *w, long kinds, int parts) {
    const long channels = w->channels, hidden = w->hidden, depth = channels / w->heads;
    if (!swin_has_amx() || depth % 2 || depth > MAX_DEPTH || hidden % 2 || w->tokens > SLOTS) return NULL;
    const struct matrix qkv = {w->qkv_weight, w->qkv_bias, channels, 3 * channels, channels};
    const struct matrix proj = {w->proj_weight, w->proj_bias, channels, channels, channels};
    const struct matrix fc1 = {w->fc1_weight, w->fc1_bias, channels, hidden, channels};
    const struct matrix fc2 = {w->fc2_weight, w->fc2_bias, hidden, channels, hidden};
    size_t used = 64;
    const size_t bytes = used + packed_bytes(&qkv, parts) + packed_bytes(&proj, parts) + packed_bytes(&fc1, parts) +
                         packed_bytes(&fc2, parts) + kinds * w->heads * 4 * STRIP * sizeof(float);
    char *memory = aligned_alloc(64, bytes);
    if (!memory) return NULL;
    struct packed_block *packed = (struct packed_block *)memory;
    packed->parts = parts;
    packed->qkv = pack_rows(&qkv, parts, take(memory, &used, packed_bytes(&qkv, parts)));
    packed->proj = pack_rows(&proj, parts, take(memory, &used, packed_bytes(&proj, parts)));
    packed->fc1 = pack_rows(&fc1, parts, take(memory, &used, packed_bytes(&fc1, parts)));
    packed->fc2 = pack_rows(&fc2, parts, take(memory, &used, packed_bytes(&fc2, parts)));
    packed->bias = pack_bias(w->bias, kinds * w->heads, w->tokens, (float *)(memory + used));
    return packed;
}

/* The same for a convolution. */
void *swin_pack_convolution(const struct convolution *w, int parts) {
    const long channels = w->channels;
    if (!swin_has_amx() || w->window * w->window > SLOTS) return NULL;
    const struct matrix taps = {w->weight, NULL, 9 * channels, channels, 3 * channels};
    const struct matrix linear = {w->linear_weight, w->linear_bias, channels, channels, channels};
    size_t used = 64;
    char *memory = aligned_alloc(64, used + 3 * packed_bytes(&taps, parts) + packed_bytes(&linear, parts));
    if (!memory) return NULL;
    struct packed_convolution *packed = (struct packed_convolution *)memory;
    packed->parts = parts;
    packed->columns = pack_columns(&taps, 3, parts, take(memory, &used, 3 * packed_bytes(&taps, parts)));
    packed->linear_columns =
        w->linear_weight ? pack_columns(&linear, 1, parts, take(memory, &used, packed_bytes(&linear, parts))) : NULL;
    return packed;
}
