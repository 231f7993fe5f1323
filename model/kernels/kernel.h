/* What the parts of the kernel share: the structures that Python fills in (model/kernels/library.py), and the work of a call.
 *
 *   block.c  the functions that Python calls, and the levels for float32 vectors (block.h, ends.h, refinement.h)
 *   amx.c    the level for processors with AMX, in bfloat16 (amx_block.h, amx_convolution.h)
 *   pool.c   the threads
 */
#ifndef SWIN_KERNEL_H
#define SWIN_KERNEL_H
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define SLOTS 64 /* tokens of a window, rounded up to whole vectors */
#define SPAN 80  /* tokens of a window of 8 with the rows above and below it */
#define EDGE 10  /* tokens in a row of the same with the columns beside it too */
#define HALO 100 /* tokens of that */
#define KINDS 4  /* kinds of attention mask */
#define BAND 8   /* rows of the input that are refined together */
#define NEAR 1   /* pixels to each side in the local range of model/refinement.py */
#define FAR 4    /* the same, in what decides on a flat area */
#define STEEP 58.0f /* largest factor on cosines, to the base of 2, with which no exponential leaves float32 */
#define LEAST_LOGIT -100.0f /* below 2^-100 a weight is nothing beside the others, and would be a denormal soon */
#define ALWAYS_INLINE inline __attribute__((always_inline))

struct block {
    long channels, heads, hidden, tokens; /* tokens of a window, 64 or less */
    const float *qkv_weight, *qkv_bias;   /* (3 C, C), (3 C) */
    const float *scale;                   /* (heads): factor on cosines; logits are to the base of 2 */
    const float *bias;                    /* (KINDS, heads, tokens of key, SLOTS of query), below 24 */
    const float *proj_weight, *proj_bias, *norm1_weight, *norm1_bias;
    const float *fc1_weight, *fc1_bias, *fc2_weight, *fc2_bias, *norm2_weight, *norm2_bias;
    float eps;
    const struct packed_block *packed; /* the weights for AMX (swin_pack_block); null: compute in float32 */
};

struct convolution {
    long channels, window;                    /* side of a window, 8 or less */
    const float *weight, *bias;               /* (C out, 3, 3, C in), (C) */
    const float *linear_weight, *linear_bias; /* of the linear layer behind it (C, C), (C); null without one */
    const float *norm_weight, *norm_bias;     /* (C), of the LayerNorm of the result; null without one */
    float eps;                                /* of that norm */
    const struct packed_convolution *packed;  /* as above (swin_pack_convolution) */
};

/* What stands before the body: the first convolution, and the linear layer and the norm that make tokens of it. */
struct embedding {
    long channels, window, colors;
    const float *weight, *bias;               /* (C, 3, 3, colors), (C) */
    const float *linear_weight, *linear_bias; /* (C, C), (C) */
    const float *norm_weight, *norm_bias;     /* (C) */
    float eps;
};

/* A head of one convolution and a pixel shuffle. */
struct head {
    long channels, window, scale, colors;
    const float *weight, *bias; /* (scale * scale * colors, 3, 3, C), (scale * scale * colors) */
};

/* Back-projection, and the limit on the range of values. */
struct refinement {
    long scale, colors, taps, border; /* taps: weights of `reduce`, a multiple of 4 */
    const float *reduce;              /* (taps), from `border` pixels of the image before a pixel's own; null: none */
    const float *enlarge;             /* (scale, 5) */
    float margin, slack;              /* slack below 0: no limit */
};

/* A call: all windows of one block or one convolution. */
struct work {
    void (*begin)(const struct work *, void *scratch); /* in each thread, before its first window; or null */
    void (*window)(const struct work *, long index, void *scratch);
    void (*end)(void); /* in each thread, after its last window; or null */
    size_t bytes;      /* of a thread's scratch memory, which may hold anything when the thread begins */
    const struct level *level;
    const struct block *block;
    const struct convolution *convolution;
    const struct embedding *embedding;
    const struct head *head;
    const struct refinement *refinement;
    const float *in, *residual;
    const int32_t *table; /* rows of `in` */
    const int32_t *grid;  /* (windows, 5): first window of the image, the window's row and column, rows, columns */
    float *out, *shallow;
    long count; /* of windows */
    const long *kinds;
    long height, width; /* of the input's images */
    /* The pool's: */
    long chunk; /* windows that a thread takes at a time */
    atomic_long next;
    int wanted;         /* threads that may still join */
    atomic_int helpers; /* threads that have joined and not left */
    struct work *following;
};

/* Run all windows with at most `threads` threads, this one among them. Returns 0, or 1 where there is no memory. */
int run_work(struct work *work, int threads);

/* The kind of a window's mask, by its place. */
static inline long kind_of(const struct work *work, long index) {
    long kind = 0, end = work->kinds[0];
    while (index >= end && kind < KINDS - 1) end += work->kinds[++kind];
    return kind;
}

/* LayerNorm of a window's tokens (window^2, C), in place, where the convolution has one behind it. `scratch` is two
 * times (C, SLOTS). */
void normalise_tokens(const struct work *work, float *tokens, float *scratch);

/* Fill in `begin`, `window`, `end` and `bytes` for a block, or a convolution, whose weights are packed for AMX. */
void prepare_amx(struct work *work);
#endif
