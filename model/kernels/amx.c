/* The level for processors with AMX: products in bfloat16 with float32 sums, in two precisions (amx_block.h).
 *
 * A block or a convolution is computed here if its weights were packed for it: cut into tiles, in the order in which
 * they are read. swin_pack_block and swin_pack_convolution give null where that is not possible, and the caller leaves
 * `packed` null: float32 is computed then. Left out where the compiler does not know the instructions.
 */
#define _GNU_SOURCE
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "kernel.h"

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 11 &&         \
    !defined(WITHOUT_AMX)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MAX_DEPTH 32 /* of a head: 16 pairs, a tile's rows */
#define ONE 0x3f80   /* in bfloat16 */
#define PADDING -1000.0f /* the bias of a key that is no token */
#define VALUE_LO (3 * 4 * TILE)  /* entries from a value's hi part to its lo part: (33 rows, 64 keys) in whole tiles */
#define WEIGHTS_LO (2 * STRIP)   /* words from the weights' hi part to their lo part */

struct packed_block {
    int parts;
    const uint16_t *qkv, *proj, *fc1, *fc2; /* (outputs / 16, inputs / 32, parts, 16, 32); the bias is further inputs */
    const float *bias;                      /* (kinds, heads, 4 strips of 16 keys) */
};

struct packed_convolution {
    int parts;
    const uint32_t *columns;        /* (outputs / 16, 3 rows, 3 inputs / 32, parts, 16 pairs, 16) */
    const uint32_t *linear_columns; /* (outputs / 16, inputs / 32, parts, 16 pairs, 16); the bias is further inputs */
};

/* Scratch memory of a thread, behind this structure. Strips are as in amx_tiles.h. */
struct block_scratch {
    float *x;                              /* (C) the residual stream */
    float *sums;                           /* (3 C) query, key and value; later what proj and fc2 give */
    float *logits;                         /* (64 keys); also two strips of fc1 */
    float *weighed;                        /* (a head's depth + 1) */
    uint32_t *tokens, *attended, *hidden;  /* operands of qkv and fc1, proj, fc2: pairs, with a row of ones behind */
    uint32_t *query, *key;                 /* of a head: pairs */
    uint32_t *weights[2];                  /* the same, of this head and of the one before */
    uint32_t *key_rows;                    /* (64 keys / 16, 16, 32) */
    uint16_t *value[2];                    /* (33 rows, 64 keys), of this head and of the next */
    const float *next[SLOTS];              /* the tokens of the window that comes next, most likely */
    long lo, hidden_lo;                    /* words from hi to lo in `tokens` and `attended`, and in `hidden` */
};

struct convolution_scratch {
    float *sums;                           /* (64 tokens, width) */
    float *zeros;                          /* (C), what lies outside the image */
    float *normalised;                     /* two times (C, 64 tokens) */
    uint16_t *halo_row;                    /* (EDGE, C) and a vector more */
    uint16_t *rows, *linear_rows;          /* (SPAN, stride), (64, linear_stride) */
    long width, stride, linear_stride;     /* outputs and inputs rounded up to tiles */
    long halo_lo, lo, linear_lo;           /* entries from hi to lo */
};

/* Inputs of a linear layer with its bias as two more, in whole tiles. */
static long operand_rows(long channels) { return (channels + 2 + 31) / 32 * 32; }

#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx512bf16,avx2,fma,prfchw,prefer-vector-width=512")
#include "amx_tiles.h"

/* The tokens of a window, wherever they lie; the first one in place of what is missing. */
static void find_tokens(const struct work *work, long index, const float **tokens) {
    const struct block *w = work->block;
    for (long i = 0; i < SLOTS; i++) {
        long row = index * w->tokens + (i < w->tokens ? i : 0);
        tokens[i] = work->in + (work->table ? work->table[row] : row) * w->channels;
    }
}

/* clang-format off */
#define PARTS 1
#define NAME(x) x##_fast
#include "amx_block.h"
#include "amx_convolution.h"
#undef PARTS
#undef NAME
#define PARTS 2
#define NAME(x) x##_high
#include "amx_block.h"
#include "amx_convolution.h"
/* clang-format on */
#pragma GCC pop_options

static pthread_once_t asked = PTHREAD_ONCE_INIT;
static int permitted;

/* Linux lets a process use tiles only after it has asked; a container may forbid that. */
static void ask_permission(void) {
    enum { REQUEST = 0x1023, TILE_DATA = 18 };
    unsigned a, b, c, features, more;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &features) || !__get_cpuid_count(7, 1, &more, &b, &c, &a)) return;
    const unsigned amx_bf16 = 1u << 22, amx_tile = 1u << 24, avx512_bf16 = 1u << 5;
    if (!(features & amx_bf16) || !(features & amx_tile) || !(more & avx512_bf16)) return;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512vl") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512bw"))
        return;
    permitted = !syscall(SYS_arch_prctl, REQUEST, TILE_DATA);
}

int swin_has_amx(void) {
    pthread_once(&asked, ask_permission);
    return permitted;
}

/* All eight tile registers with 16 rows of 64 bytes. */
static void configure_tiles(void) {
    struct { uint8_t palette, start, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } shape = {.palette = 1};
    for (int i = 0; i < 8; i++) shape.bytes[i] = 64, shape.rows[i] = 16;
    __asm__ volatile("ldtilecfg %0" ::"m"(shape));
}

static void release_tiles(void) { __asm__ volatile("tilerelease" ::); }

/* The next `bytes` of the scratch memory; `*used` counts them. Without memory it only counts. */
static void *take(char *memory, size_t *used, size_t bytes) {
    void *place = memory ? memory + *used : NULL;
    *used += (bytes + 63) / 64 * 64;
    return place;
}

/* Lay a block's scratch memory out, and say how much it is. */
static size_t lay_out_block(const struct block *w, struct block_scratch *m, char *memory) {
    const size_t parts = w->packed->parts, strip = STRIP * sizeof(float);
    size_t used = (sizeof *m + 63) / 64 * 64;
    m->lo = operand_rows(w->channels) * 32, m->hidden_lo = operand_rows(w->hidden) * 32;
    m->x = take(memory, &used, (w->channels + 15) / 16 * strip);
    m->sums = take(memory, &used, (3 * w->channels + 15) / 16 * strip);
    m->logits = take(memory, &used, 4 * strip);
    m->weighed = take(memory, &used, (MAX_DEPTH / 16 + 1) * strip);
    m->tokens = take(memory, &used, parts * m->lo * sizeof(uint32_t));
    m->attended = take(memory, &used, parts * m->lo * sizeof(uint32_t));
    m->hidden = take(memory, &used, parts * m->hidden_lo * sizeof(uint32_t));
    m->key_rows = take(memory, &used, 2 * strip);
    m->query = take(memory, &used, 2 * strip);
    m->key = take(memory, &used, 2 * strip);
    for (int i = 0; i < 2; i++) {
        m->weights[i] = take(memory, &used, parts * WEIGHTS_LO * sizeof(uint32_t));
        m->value[i] = take(memory, &used, 2 * VALUE_LO * sizeof(uint16_t));
    }
    return used;
}

/* What follows the rows of an operand: ones, against which the packed weights hold the bias, then zeros. */
static void end_operand(uint32_t *pairs, long channels, long lo, int parts) {
    for (int part = 0; part < parts; part++)
        for (long row = channels / 2; row < operand_rows(channels) / 2; row++)
            for (long v = 0; v < 4; v++) memset(pairs + part * lo + AT(row, v), 0, 64);
    for (long token = 0; token < SLOTS; token++)
        pairs[AT(channels / 2, token / 16) + token % 16] = parts == 1 ? ONE << 16 | ONE : ONE;
}

static void begin_block(const struct work *work, void *memory) {
    const struct block *w = work->block;
    struct block_scratch *m = memory;
    const int parts = w->packed->parts;
    lay_out_block(w, m, memory);
    end_operand(m->tokens, w->channels, m->lo, parts);
    end_operand(m->attended, w->channels, m->lo, parts);
    end_operand(m->hidden, w->hidden, m->hidden_lo, parts);
    memset(m->query, 0, 2 * STRIP * sizeof(uint32_t));
    memset(m->key, 0, 2 * STRIP * sizeof(uint32_t));
    const long depth = w->channels / w->heads;
    for (int i = 0; i < 2; i++) {
        memset(m->value[i], 0, 2 * VALUE_LO * sizeof(uint16_t));
        for (long key = 0; key < SLOTS; key++) /* the row of ones, which adds up the weights */
            m->value[i][(depth / 16 * 2 + key / 32) * 2 * TILE + depth % 16 * 32 + key % 32] = ONE;
    }
    configure_tiles();
}

static size_t lay_out_convolution(const struct convolution *w, struct convolution_scratch *m, char *memory) {
    const size_t parts = w->packed->parts;
    size_t used = (sizeof *m + 63) / 64 * 64;
    m->width = (w->channels + 15) / 16 * 16, m->stride = (3 * w->channels + 31) / 32 * 32;
    m->linear_stride = operand_rows(w->channels);
    m->lo = SPAN * m->stride, m->linear_lo = SLOTS * m->linear_stride;
    m->sums = take(memory, &used, SLOTS * m->width * sizeof(float));
    m->zeros = take(memory, &used, w->channels * sizeof(float));
    m->normalised = w->norm_weight ? take(memory, &used, 2 * SLOTS * w->channels * sizeof(float)) : NULL;
    m->halo_lo = (EDGE * w->channels + 63) / 32 * 32;
    m->halo_row = take(memory, &used, parts * m->halo_lo * sizeof(uint16_t));
    m->rows = take(memory, &used, parts * m->lo * sizeof(uint16_t));
    m->linear_rows = take(memory, &used, parts * m->linear_lo * sizeof(uint16_t));
    return used;
}

static void begin_convolution(const struct work *work, void *memory) {
    const struct convolution *w = work->convolution;
    struct convolution_scratch *m = memory;
    lay_out_convolution(w, m, memory);
    memset(m->zeros, 0, w->channels * sizeof(float));
    memset(m->linear_rows, 0, w->packed->parts * m->linear_lo * sizeof(uint16_t));
    configure_tiles();
}

void prepare_amx(struct work *work) {
    struct block_scratch block;
    struct convolution_scratch convolution;
    if (work->block) {
        work->begin = begin_block;
        work->window = work->block->packed->parts == 1 ? block_window_fast : block_window_high;
        work->bytes = lay_out_block(work->block, &block, NULL);
    } else {
        work->begin = begin_convolution;
        work->window =
            work->convolution->packed->parts == 1 ? convolution_window_fast : convolution_window_high;
        work->bytes = lay_out_convolution(work->convolution, &convolution, NULL);
    }
    work->end = release_tiles;
}

#include "amx_packing.h"

#else /* no AMX */

int swin_has_amx(void) { return 0; }
void *swin_pack_block(const struct block *block, long kinds, int parts) { return NULL; }
void *swin_pack_convolution(const struct convolution *convolution, int parts) { return NULL; }
void prepare_amx(struct work *work) {}

#endif

void swin_free_packed(void *packed) { free(packed); }
