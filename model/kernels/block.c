/* A SwinTransformerBlock over many windows on a CPU, one window after another through the whole block, so that nothing
 * but its input and output leaves the cache. Float32 throughout. Compiled once for each instruction set below; the best
 * that the processor has is taken at run time. Python calls it through ctypes (model/fused.py).
 */
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define SLOTS 64 /* tokens of a window, rounded up to whole vectors */
#define KINDS 4  /* kinds of attention mask */
#define CHUNK 4  /* windows that a thread takes at a time */
#define MAX_THREADS 256
#define LOG2_E 1.44269504088896341f
#define ALWAYS_INLINE inline __attribute__((always_inline))
#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

struct block {
    long channels, heads, hidden, tokens; /* tokens of a window, 64 or less */
    const float *qkv_weight, *qkv_bias;   /* (3 C, C), (3 C) */
    const float *scale;                   /* (heads): factor on cosines */
    const float *bias;                    /* (KINDS, heads, tokens of key, SLOTS of query) */
    const float *proj_weight, *proj_bias, *norm1_weight, *norm1_bias;
    const float *fc1_weight, *fc1_bias, *fc2_weight, *fc2_bias, *norm2_weight, *norm2_bias;
    float eps;
};

/* clang-format off */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define X86_LEVELS
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma,prefer-vector-width=512")
#define NAME(x) x##_avx512
#define LANES 16
#define VECTORS 4
#include "block.h"
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define NAME(x) x##_avx2
#define LANES 8
#define VECTORS 2
#include "block.h"
#pragma GCC pop_options
#endif
#define NAME(x) x##_plain
#define LANES 4
#define VECTORS 2
#include "block.h"
/* clang-format on */

typedef void window_function(const struct block *, const float *, float *, float *);

static window_function *best_window(void) {
#ifdef X86_LEVELS
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw"))
        return window_avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return window_avx2;
#endif
    return window_plain;
}

struct work {
    const struct block *block;
    const float *in;
    const int32_t *gather;
    float *out;
    long count;
    const long *kinds;
    window_function *window;
    atomic_long next;
    atomic_int failed;
};

static void one_window(const struct work *work, long index, float *x, float *scratch) {
    const struct block *w = work->block;
    const long channels = w->channels, tokens = w->tokens;
    long kind = 0, end = work->kinds[0];
    while (index >= end && kind < KINDS - 1) end += work->kinds[++kind];
    for (long i = 0; i < tokens; i++) {
        long row = index * tokens + i;
        const float *token = work->in + (work->gather ? work->gather[row] : row) * channels;
        for (long c = 0; c < channels; c++) x[c * SLOTS + i] = token[c];
    }
    work->window(w, w->bias + kind * w->heads * tokens * SLOTS, x, scratch);
    for (long i = 0; i < tokens; i++) {
        float *token = work->out + (index * tokens + i) * channels;
        for (long c = 0; c < channels; c++) token[c] = x[c * SLOTS + i];
    }
}

static void *run(void *argument) {
    struct work *work = argument;
    const struct block *w = work->block;
    const size_t floats = SLOTS * (size_t)(5 * w->channels + SLOTS + 1 + w->hidden);
    float *x = aligned_alloc(64, floats * sizeof(float));
    if (!x) {
        atomic_store(&work->failed, 1);
        return NULL;
    }
    memset(x, 0, floats * sizeof(float));
    for (;;) {
        long first = atomic_fetch_add(&work->next, CHUNK);
        if (first >= work->count) break;
        long last = first + CHUNK < work->count ? first + CHUNK : work->count;
        for (long index = first; index < last; index++) one_window(work, index, x, x + w->channels * SLOTS);
    }
    free(x);
    return NULL;
}

/* Run all windows: `in` and `out` are (count * tokens, channels); window i takes its tokens from the rows that `gather`
 * names, or in order where it is null; `kinds` says how many windows have each kind of mask. `in` is not `out`.
 * Returns 0, or 1 where memory is short. */
int swin_block(const struct block *block, const float *in, const int32_t *gather, float *out, long count,
               const long *kinds, int threads) {
    struct work work = {.block = block, .in = in, .gather = gather, .out = out, .count = count, .kinds = kinds,
                        .window = best_window()};
    pthread_t others[MAX_THREADS];
    long wanted = (count + CHUNK - 1) / CHUNK;
    if (wanted > threads) wanted = threads;
    if (wanted > MAX_THREADS) wanted = MAX_THREADS;
    long started = 0;
    while (started < wanted - 1 && !pthread_create(&others[started], NULL, run, &work)) started++;
    run(&work);
    for (long i = 0; i < started; i++) pthread_join(others[i], NULL);
    return atomic_load(&work.failed);
}

/* The size of `struct block`, by which the caller knows that it means the same one. */
int swin_block_size(void) { return (int)sizeof(struct block); }

/* The instruction set in use: 512, 256 or 128 bits. */
int swin_block_width(void) {
    window_function *window = best_window();
#ifdef X86_LEVELS
    if (window == window_avx512) return 512;
    if (window == window_avx2) return 256;
#endif
    return window == window_plain ? 128 : 0;
}
