/* Runs one call of the kernel in a program of its own, so that an emulator can run it for another processor.
 *
 *   kernel_program IN OUT: reads the arguments from IN (see tests/emulated_kernel.py), and writes the result to OUT.
 */
#include "../model/kernels/kernel.h"
#include <stdio.h>
#include <stdlib.h>

int swin_block(const struct block *, const float *, const int32_t *, float *, long, const long *, int);
int swin_convolution(const struct convolution *, const float *, const int32_t *, const float *, float *, long, int);
int swin_block_width(void);

static FILE *file;

/* The next array: the number of its values (8 bytes), and the values, of 4 bytes each; null where there are none. */
static void *next(void) {
    int64_t count;
    if (fread(&count, sizeof count, 1, file) != 1) exit(3);
    if (count == 0) return NULL;
    void *values = aligned_alloc(64, (size_t)((count * 4 + 63) / 64 * 64));
    if (!values || fread(values, 4, (size_t)count, file) != (size_t)count) exit(4);
    return values;
}

int main(int argc, char **argv) {
    if (argc != 3 || !(file = fopen(argv[1], "rb"))) return 2;
    int64_t head[12];
    if (fread(head, sizeof head, 1, file) != 1) return 2;
    const long count = (long)head[5], channels = (long)head[1];
    long kinds[KINDS] = {(long)head[6], (long)head[7], (long)head[8], (long)head[9]}, tokens;
    float *in, *out;
    int failed;
    if (head[0] == 0) {
        struct block block = {.channels = channels, .heads = (long)head[2], .hidden = (long)head[3], .tokens = (long)head[4]};
        const float **fields[] = {&block.qkv_weight, &block.qkv_bias, &block.scale, &block.bias, &block.proj_weight,
                                  &block.proj_bias, &block.norm1_weight, &block.norm1_bias, &block.fc1_weight,
                                  &block.fc1_bias, &block.fc2_weight, &block.fc2_bias, &block.norm2_weight,
                                  &block.norm2_bias};
        for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) *fields[i] = next();
        block.eps = *(float *)next();
        tokens = count * block.tokens;
        in = next();
        const int32_t *gather = next();
        out = malloc(sizeof(float) * (size_t)(tokens * channels));
        failed = swin_block(&block, in, gather, out, count, kinds, (int)head[10]);
    } else {
        struct convolution convolution = {.channels = channels, .window = (long)head[4]};
        convolution.weight = next(), convolution.bias = next();
        convolution.linear_weight = next(), convolution.linear_bias = next();
        tokens = count * convolution.window * convolution.window;
        in = next();
        const int32_t *halo = next();
        const float *residual = next();
        out = malloc(sizeof(float) * (size_t)(tokens * channels));
        failed = swin_convolution(&convolution, in, halo, residual, out, count, (int)head[10]);
    }
    FILE *result = fopen(argv[2], "wb");
    if (!result || fwrite(out, sizeof(float), (size_t)(tokens * channels), result) != (size_t)(tokens * channels)) return 5;
    if (fclose(result)) return 5;
    printf("%d\n", swin_block_width());
    return failed;
}
