/* A SwinTransformerBlock over many windows on a CPU, one window after another through the whole block, so that nothing
 * but its input and output leaves the cache; and the convolution behind a stage, in the same order of tokens, so that
 * no image is put together in between. Float32 throughout. Compiled once for each instruction set below; the best that
 * the processor has is taken at run time. Python calls it through ctypes (model/cpu_kernel.py).
 */
#include <math.h>
#include <string.h>

#include "kernel.h"

#ifdef __clang__
#define UNROLL _Pragma("unroll")
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define UNROLL _Pragma("GCC unroll 16")
#define PICK(a, b, ...) __builtin_shuffle(a, b, (int32_t __attribute__((vector_size(16)))){__VA_ARGS__})
#endif

/* What there is once for each instruction set. */
struct level {
    int width; /* bits of a vector */
    void (*load)(const float *const *tokens, long count, long channels, float *x, long stride);
    void (*store)(const float *x, long count, long channels, const float *residual, float *tokens);
    void (*window)(const struct block *, const float *bias, float *x, float *scratch);
    void (*convolve)(const struct convolution *, const float *const *halo, const float *residual, float *out,
                     float *scratch);
    void (*norm)(float *tokens, long count, long channels, const float *weight, const float *bias, float eps,
                 float *scratch);
    void (*embed)(const struct embedding *, const float *const *halo, float *shallow, float *out, float *scratch);
    void (*enlarge)(const struct head *, const float *const *halo, long place, long stride, const float *residual,
                    float *out, float *scratch);
    void (*find_error)(const struct refinement *, const float *pixels, const float *image, long height, long width,
                       long row, float *error, float *scratch);
    void (*refine)(const struct refinement *, const float *pixels, const float *error, float *image, long height,
                   long width, long first, long rows, float *scratch);
};

/* clang-format off */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define X86_LEVELS
#include <immintrin.h>
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma,prefer-vector-width=512")
#define NAME(x) x##_avx512
#define LANES 16
#define VECTORS 4
#define LARGER(a, b) ((__typeof__(a))_mm512_max_ps((__m512)(a), (__m512)(b)))
#include "block.h"
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define NAME(x) x##_avx2
#define LANES 8
#define VECTORS 2
#define LARGER(a, b) ((__typeof__(a))_mm256_max_ps((__m256)(a), (__m256)(b)))
#include "block.h"
#pragma GCC pop_options
#endif
#define NAME(x) x##_plain
#define LANES 4
#define VECTORS 2
#define LARGER(a, b) ((__typeof__(a))(((ints)(a) & ((a) > (b))) | ((ints)(b) & ~((a) > (b)))))
#include "block.h"
/* clang-format on */

static const struct level *best_level(void) {
#ifdef X86_LEVELS
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw"))
        return &level_avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &level_avx2;
#endif
    return &level_plain;
}

static void block_window(const struct work *work, long index, void *scratch) {
    const struct block *w = work->block;
    const long channels = w->channels, tokens = w->tokens;
    float *x = scratch;
    const float *rows[SLOTS];
    for (long i = 0; i < SLOTS; i++) {
        long row = index * tokens + (i < tokens ? i : 0);
        rows[i] = work->in + (work->table ? work->table[row] : row) * channels;
    }
    work->level->load(rows, SLOTS, channels, x, SLOTS);
    work->level->window(w, w->bias + kind_of(work, index) * w->heads * tokens * SLOTS, x, x + channels * SLOTS);
    work->level->store(x, tokens, channels, NULL, work->out + index * tokens * channels);
}

/* What begins the scratch memory of the windows that follow: a token or pixel of zeros, for what lies outside an image.
 * Returns the rest. */
static float *behind_zeros(float *scratch, long channels) { return scratch + (channels + 15) / 16 * 16; }

static void begin_with_zeros(const struct work *work, void *scratch) {
    const long channels = work->convolution ? work->convolution->channels
                                            : work->head ? work->head->channels : work->embedding->colors;
    memset(scratch, 0, channels * sizeof(float));
}

/* The rows of `in` that a window sees. */
static void find_halo(const struct work *work, long index, long window, long channels, const float *zeros,
                      const float **halo) {
    const long seen = (window + 2) * (window + 2);
    for (long i = 0; i < seen; i++) {
        long row = work->table[index * seen + i];
        halo[i] = row < 0 ? zeros : work->in + row * channels;
    }
}

void normalise_tokens(const struct work *work, float *tokens, float *scratch) {
    const struct convolution *w = work->convolution;
    if (w->norm_weight)
        work->level->norm(tokens, w->window * w->window, w->channels, w->norm_weight, w->norm_bias, w->eps, scratch);
}

static void convolution_window(const struct work *work, long index, void *scratch) {
    const struct convolution *w = work->convolution;
    const long channels = w->channels, place = index * w->window * w->window * channels;
    float *memory = behind_zeros(scratch, channels);
    const float *halo[HALO];
    find_halo(work, index, w->window, channels, scratch, halo);
    work->level->convolve(w, halo, work->residual + place, work->out + place, memory);
    normalise_tokens(work, work->out + place, memory + channels * SPAN);
}

static void embedding_window(const struct work *work, long index, void *scratch) {
    const struct embedding *w = work->embedding;
    const long place = index * w->window * w->window * w->channels;
    const float *halo[HALO];
    find_halo(work, index, w->window, w->colors, scratch, halo);
    work->level->embed(w, halo, work->shallow + place, work->out + place, behind_zeros(scratch, w->colors));
}

static void head_window(const struct work *work, long index, void *scratch) {
    const struct head *w = work->head;
    const int32_t *grid = work->grid + 5 * index;
    const long side = w->window * w->scale, stride = grid[4] * side * w->colors;
    const long place = grid[0] * side * side * w->colors + grid[1] * side * stride + grid[2] * side * w->colors;
    const float *halo[HALO];
    find_halo(work, index, w->window, w->channels, scratch, halo);
    work->level->enlarge(w, halo, place, stride, work->residual, work->out, behind_zeros(scratch, w->channels));
}

/* Run all windows: `in` and `out` are (count * tokens, channels); window i takes its tokens from the rows that `gather`
 * names, or in order where it is null; `kinds` says how many windows have each kind of mask. `in` is not `out`.
 * Returns 0, or 1 where memory is short. */
int swin_block(const struct block *block, const float *in, const int32_t *gather, float *out, long count,
               const long *kinds, int threads) {
    struct work work = {.window = block_window, .level = best_level(), .block = block, .in = in, .table = gather,
                        .out = out, .count = count, .kinds = kinds,
                        .bytes = sizeof(float) * SLOTS * (size_t)(5 * block->channels + SLOTS + 1 + block->hidden)};
    if (block->packed) prepare_amx(&work);
    return run_work(&work, threads);
}

/* Run a convolution of 3x3 with zeros around every image, and the linear layer behind it, over all windows, add
 * `residual`, and normalise that if there is a norm: `in`, `residual` and `out` are (count * window^2, channels), windows of the unshifted grid in one order;
 * `halo` names the rows of `in` that each window sees, (count, (window + 2)^2), -1 outside the image. `in` is not `out`.
 * Returns 0, or 1 where memory is short. */
int swin_convolution(const struct convolution *convolution, const float *in, const int32_t *halo, const float *residual,
                     float *out, long count, int threads) {
    struct work work = {.begin = begin_with_zeros, .window = convolution_window, .level = best_level(),
                        .convolution = convolution, .in = in, .residual = residual, .table = halo, .out = out,
                        .count = count,
                        .bytes = sizeof(float) * ((SPAN + 2 * SLOTS + 1) * (size_t)convolution->channels + 16)};
    if (convolution->packed) prepare_amx(&work);
    return run_work(&work, threads);
}

/* Run the embedding over all windows: `pixels` are (count * window^2, colors), `halo` as above; `shallow` and `out` are
 * (count * window^2, C): what the first convolution gives, and what the norm gives. Returns 0, or 1 where memory is
 * short. */
int swin_embed(const struct embedding *embedding, const float *pixels, const int32_t *halo, float *shallow, float *out,
               long count, int threads) {
    const size_t floats = embedding->colors * (SPAN + 9 * SLOTS + 1) + 2 * embedding->channels * SLOTS + 16;
    struct work work = {.begin = begin_with_zeros, .window = embedding_window, .level = best_level(),
                        .embedding = embedding, .in = pixels, .table = halo, .shallow = shallow, .out = out,
                        .count = count, .bytes = sizeof(float) * floats};
    return run_work(&work, threads);
}

/* Run the head over all windows of all images: `in` is (count * window^2, C), `halo` as above; `out` and `residual`,
 * which is added if it is not null, hold the images' pixels (scale * height, scale * width, colors), one image behind
 * the other; `grid` says where each window is in its image. Returns 0, or 1 where memory is short. */
int swin_enlarge(const struct head *head, const float *in, const int32_t *halo, const int32_t *grid,
                 const float *residual, float *out, long count, int threads) {
    const size_t floats = head->channels * (SPAN + 1) + head->scale * head->scale * head->colors * SLOTS + 16;
    struct work work = {.begin = begin_with_zeros, .window = head_window, .level = best_level(), .head = head, .in = in,
                        .table = halo, .grid = grid, .residual = residual, .out = out, .count = count,
                        .bytes = sizeof(float) * floats};
    return run_work(&work, threads);
}

/* A band of rows, of one of the images: its error, or the rest. */
static void band_of_rows(const struct work *work, long index, void *scratch) {
    const struct refinement *w = work->refinement;
    const long height = work->height, width = work->width, bands = (height + BAND - 1) / BAND;
    const long first = index % bands * BAND, rows = first + BAND < height ? BAND : height - first;
    const long place = index / bands * height * width * w->colors;
    const float *pixels = work->in + place;
    float *image = work->out + place * w->scale * w->scale, *error = work->shallow + place;
    if (work->residual)
        work->level->refine(w, pixels, work->residual + place, image, height, width, first, rows, scratch);
    else
        for (long row = first; row < first + rows; row++)
            work->level->find_error(w, pixels, image, height, width, row, error, scratch);
}

/* Refine in place `count` images (scale * height, scale * width, colors) of the inputs `pixels` (height, width, colors),
 * both one behind the other; `error`, as large as `pixels`, is overwritten. Returns 0, or 1 where memory is short. */
int swin_refine(const struct refinement *w, const float *pixels, float *error, float *image, long count, long height,
                long width, int threads) {
    const size_t line = width * w->colors, fine = line * w->scale, border = (2 * w->border + 4 + 2 * FAR) * w->colors;
    struct work work = {.window = band_of_rows, .level = best_level(), .refinement = w, .in = pixels, .shallow = error,
                        .out = image, .count = count * ((height + BAND - 1) / BAND), .height = height, .width = width,
                        .bytes = sizeof(float) * ((BAND + 6) * fine + 7 * line + border)};
    if (w->reduce && run_work(&work, threads)) return 1;
    work.residual = error;
    atomic_store(&work.next, 0);
    return run_work(&work, threads);
}

/* The sizes of the structures, by which the caller knows that it means the same ones. */
int swin_block_size(void) { return (int)sizeof(struct block); }
int swin_convolution_size(void) { return (int)sizeof(struct convolution); }
int swin_embedding_size(void) { return (int)sizeof(struct embedding); }
int swin_head_size(void) { return (int)sizeof(struct head); }
int swin_refinement_size(void) { return (int)sizeof(struct refinement); }

/* The instruction set in use: 512, 256 or 128 bits. */
int swin_block_width(void) { return best_level()->width; }
