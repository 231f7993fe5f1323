/* A checksum of weights, by which a change of any of them is noticed (model/inference/fingerprint.py). */
#include <stdint.h>
#include <string.h>

#define LANES 8
#define ODD 0x9e3779b97f4a7c15u

/* One word into each lane. Every step can be undone, so a change of one word alone changes the result for certain. */
static void mix(uint64_t lanes[LANES], const void *block) {
    uint64_t words[LANES];
    memcpy(words, block, sizeof words);
    for (int i = 0; i < LANES; i++) {
        lanes[i] = (lanes[i] ^ words[i]) * ODD;
        lanes[i] ^= lanes[i] >> 32;
    }
}

/* Of `count` pieces of memory. */
uint64_t swin_checksum(const void *const *places, const long *bytes, long count) {
    uint64_t lanes[LANES] = {1, 2, 3, 4, 5, 6, 7, 8}, sum = 0;
    for (long i = 0; i < count; i++) {
        const char *place = places[i];
        long left = bytes[i];
        for (; left >= (long)sizeof lanes; left -= sizeof lanes, place += sizeof lanes) mix(lanes, place);
        char last[sizeof lanes] = {0};
        memcpy(last, place, left);
        mix(lanes, last);
    }
    for (int i = 0; i < LANES; i++) sum = (sum ^ lanes[i]) * ODD, sum ^= sum >> 32;
    return sum;
}
