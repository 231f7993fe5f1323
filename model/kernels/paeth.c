/* PNG's Paeth filter, for the encoder (app/codec/png_writer.py). Free of branches, so that the compiler makes vectors. */
#include <stddef.h>
#include <stdint.h>

#define ALWAYS_INLINE inline __attribute__((always_inline))
#define PAETH 4

static ALWAYS_INLINE int16_t magnitude(int16_t value) { return value < 0 ? -value : value; }

static ALWAYS_INLINE void filter_row(const uint8_t *row, const uint8_t *above, long bytes, long pixel, uint8_t *out) {
    for (long i = 0; i < pixel; i++) out[i] = row[i] - above[i]; /* nothing on the left */
    for (long i = pixel; i < bytes; i++) {
        int16_t left = row[i - pixel], up = above[i], corner = above[i - pixel];
        int16_t from_left = up - corner, from_up = left - corner, from_corner = magnitude(from_left + from_up);
        from_left = magnitude(from_left), from_up = magnitude(from_up);
        int16_t nearest = from_left <= from_up && from_left <= from_corner ? left : from_up <= from_corner ? up : corner;
        out[i] = row[i] - nearest;
    }
}

static ALWAYS_INLINE void filter(const uint8_t *in, long rows, long bytes, long pixel, uint8_t *out) {
    for (long y = 0; y < rows; y++, in += bytes) {
        *out++ = PAETH;
        if (y) {
            filter_row(in, in - bytes, bytes, pixel, out);
        } else { /* above the first row are zeros: the prediction is the left */
            for (long i = 0; i < bytes; i++) out[i] = in[i] - (i < pixel ? 0 : in[i - pixel]);
        }
        out += bytes;
    }
}

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
__attribute__((target("avx2"))) static void filter_avx2(const uint8_t *in, long rows, long bytes, long pixel,
                                                        uint8_t *out) {
    filter(in, rows, bytes, pixel, out);
}
#endif

/* `in` is (rows, bytes), `pixel` bytes make a pixel; `out` is (rows, 1 + bytes): each row behind the filter's number. */
void swin_paeth(const uint8_t *in, long rows, long bytes, long pixel, uint8_t *out) {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
    if (__builtin_cpu_supports("avx2")) {
        filter_avx2(in, rows, bytes, pixel, out);
        return;
    }
#endif
    filter(in, rows, bytes, pixel, out);
}
