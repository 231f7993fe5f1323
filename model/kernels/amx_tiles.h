/* Tiles and vectors, for every precision. Included by amx.c.
 *
 * A tile register holds 16 rows of 64 bytes. `tdpbf16ps` adds to a tile of sums (16, 16) float32 the product of
 * rows (16, 32) bfloat16 and columns (32, 16) bfloat16, where the columns come as 16 rows of pairs: row i holds entries
 * 2i and 2i + 1 of each column, side by side in 32 bits.
 *
 * Sums and columns of a window (64 tokens) are kept in strips of 16 rows: four tiles of 1 KiB, one behind the other,
 * each for 16 tokens. Rows of 256 bytes for 64 tokens would be slower to load. `AT` finds a row's vector in them.
 *
 * The tile intrinsics of GCC 12 do not say that they read and write memory, so stores before them got lost: this is
 * inline assembly.
 */
#define TILE 256           /* words of 32 bits in a tile */
#define STRIP (4 * TILE)   /* words in a strip */
#define AT(row, vector) ((((row) >> 4) * 4 + (vector)) * TILE + ((row) & 15) * 16)

#define CLEAR_TILE(tile) __asm__ volatile("tilezero %%tmm" #tile ::)
#define LOAD_TILE(tile, place, stride)                                                                                 \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile ::"r"(place), "r"((long)(stride)) : "memory")
#define STORE_TILE(tile, place, stride)                                                                                \
    __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(place), "r"((long)(stride)) : "memory")
#define ADD_PRODUCT(sums, rows, columns)                                                                               \
    __asm__ volatile("tdpbf16ps %%tmm" #columns ", %%tmm" #rows ", %%tmm" #sums ::)

/* Tiles 0 to 3 are sums, tile 4 is the operand that four products share, tiles 5 to 7 are the others. */
static ALWAYS_INLINE void clear_sums(void) {
    CLEAR_TILE(0);
    CLEAR_TILE(1);
    CLEAR_TILE(2);
    CLEAR_TILE(3);
}

/* Four tiles of sums to memory: `step` bytes from tile to tile, `stride` bytes from row to row. */
static ALWAYS_INLINE void store_sums(float *out, long step, long stride) {
    char *place = (char *)out;
    STORE_TILE(0, place, stride);
    STORE_TILE(1, place + step, stride);
    STORE_TILE(2, place + 2 * step, stride);
    STORE_TILE(3, place + 3 * step, stride);
}

/* Add a tile of 16 tokens' rows, 4 times, each times the columns in tile 4. */
static ALWAYS_INLINE void multiply_rows(const uint16_t *rows, long step, long stride) {
    LOAD_TILE(5, rows, stride);
    ADD_PRODUCT(0, 5, 4);
    LOAD_TILE(6, rows + step, stride);
    ADD_PRODUCT(1, 6, 4);
    LOAD_TILE(7, rows + 2 * step, stride);
    ADD_PRODUCT(2, 7, 4);
    LOAD_TILE(5, rows + 3 * step, stride);
    ADD_PRODUCT(3, 5, 4);
}

/* Add two tiles of rows, in tiles 4 and 5, times two of columns, in tiles 6 and 7. */
static ALWAYS_INLINE void multiply_square(void) {
    ADD_PRODUCT(0, 4, 6);
    ADD_PRODUCT(1, 4, 7);
    ADD_PRODUCT(2, 5, 6);
    ADD_PRODUCT(3, 5, 7);
}

/* 16 vectors as rows to the same as columns. */
static ALWAYS_INLINE void transpose(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]), r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]), r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88), t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 8; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    }
}

static ALWAYS_INLINE void transpose_tile(const uint32_t *in, uint32_t *out) {
    __m512i r[16];
    for (int i = 0; i < 16; i++) r[i] = _mm512_load_si512(in + 16 * i);
    transpose(r);
    for (int i = 0; i < 16; i++) _mm512_store_si512(out + 16 * i, r[i]);
}

/* The first lanes of a vector, as many as there are; none for a negative count. */
static ALWAYS_INLINE __mmask16 first_lanes(long count) {
    return count >= 16 ? 0xffff : count <= 0 ? 0 : (__mmask16)((1u << count) - 1);
}

/* Bring some tokens into the second level of the cache. */
static ALWAYS_INLINE void prefetch_tokens(const float *const *tokens, long first, long end, long channels) {
    for (long i = first; i < end; i++)
        for (long c = 0; c < channels; c += 16) _mm_prefetch((const char *)(tokens[i] + c), _MM_HINT_T1);
}

/* Part `index` of `count` of some floats: into the cache, to be read, or to be written, so that stores do not wait. */
static ALWAYS_INLINE void prefetch_to_read(const float *floats, long size, long index, long count) {
    for (long i = size * index / count; i < size * (index + 1) / count; i += 16)
        _mm_prefetch((const char *)(floats + i), _MM_HINT_T0);
}

static ALWAYS_INLINE void prefetch_to_write(const float *floats, long size, long index, long count) {
    for (long i = size * index / count; i < size * (index + 1) / count; i += 16) __builtin_prefetch(floats + i, 1);
}

/* Tokens (64, C), from wherever they lie, to strips of channels. */
static void load_tokens(const float *const *tokens, long channels, float *x) {
    for (long i = 0; i < SLOTS; i += 16)
        for (long c = 0; c < channels; c += 16) {
            __m512i r[16];
            for (int k = 0; k < 16; k++) r[k] = _mm512_maskz_loadu_epi32(first_lanes(channels - c), tokens[i + k] + c);
            transpose(r);
            for (int k = 0; k < 16; k++) _mm512_store_si512(x + AT(c + k, i / 16), r[k]);
        }
}

/* Strips of channels to the first `count` tokens, one behind the other. */
static void store_tokens(const float *x, long count, long channels, float *tokens) {
    for (long i = 0; i < count; i += 16)
        for (long c = 0; c < channels; c += 16) {
            __m512i r[16];
            for (int k = 0; k < 16; k++) r[k] = _mm512_load_si512(x + AT(c + k, i / 16));
            transpose(r);
            for (int k = 0; k < 16 && i + k < count; k++)
                _mm512_mask_storeu_epi32(tokens + (i + k) * channels + c, first_lanes(channels - c), r[k]);
        }
}
