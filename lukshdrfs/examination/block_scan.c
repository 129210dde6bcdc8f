/* See block_scan.h. */
#include "examination/block_scan.h"

#include <stdlib.h>
#include <string.h>

enum { BLOCK = 512, UNIT = 16, LEAST_DIFFERENT = 179, UNIT_SLOTS = 8192, LANES = 4 };

static uint64_t word_at(const uint8_t *data) {
    uint64_t word;
    memcpy(&word, data, sizeof word);
    return word;
}

/* Several counters for a value: with one, equal bytes in a row would wait for each other's store. */
struct counters {
    uint32_t of[LANES][256];
};

static void count_word(struct counters *counters, uint64_t word) {
    for (int byte = 0; byte < 8; byte++)
        counters->of[byte % LANES][(word >> (8 * byte)) & 255]++;
}

/* Adds the counts to `total`; returns the sum of their squares. */
static uint64_t sum_up(uint64_t *total, const struct counters *counters) {
    uint64_t squares = 0;
    for (int value = 0; value < 256; value++) {
        uint64_t count = 0;
        for (int lane = 0; lane < LANES; lane++)
            count += counters->of[lane][value];
        total[value] += count;
        squares += count * count;
    }
    return squares;
}

static void count_bytes(struct region_scan *found, struct byte_counts *total, const uint8_t *data, size_t size) {
    struct counters bytes, steps;
    uint64_t before = 0;
    size_t at = 0;
    memset(&bytes, 0, sizeof bytes);
    memset(&steps, 0, sizeof steps);
    for (; at + 8 <= size; at += 8) {
        uint64_t word = word_at(data + at);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
        uint64_t shifted = word << 8 | before;
        before = word >> 56;
#else
        uint64_t shifted = word >> 8 | before << 56;
        before = word & 255;
#endif
        count_word(&bytes, word);
        count_word(&steps, word ^ shifted);
    }
    for (; at < size; at++) {
        bytes.of[0][data[at]]++;
        steps.of[0][data[at] ^ before]++;
        before = data[at];
    }
    found->bytes_squares = sum_up(total->bytes, &bytes);
    found->steps_squares = sum_up(total->steps, &steps);
}

static int different_values(const uint8_t *block) {
    uint8_t seen[256] = {0};
    int different = 0;
    for (int at = 0; at < BLOCK; at++)
        seen[block[at]] = 1;
    for (int value = 0; value < 256; value++)
        different += seen[value];
    return different;
}

static uint64_t mixed(uint64_t value) { /* the finalizer of MurmurHash3 */
    value = (value ^ value >> 33) * 0xff51afd7ed558ccdu;
    value = (value ^ value >> 33) * 0xc4ceb9fe1a85ec53u;
    return value ^ value >> 33;
}

/* Never 0, which stands for an empty slot. `zero` hears whether there is nothing but zeros. */
static uint64_t fingerprint(const uint8_t *block, int *zero) {
    uint64_t lane[LANES] = {1, 2, 3, 4}, any = 0;
    for (int at = 0; at < BLOCK; at += 8 * LANES)
        for (int n = 0; n < LANES; n++) {
            uint64_t word = word_at(block + at + 8 * n);
            any |= word;
            lane[n] = (lane[n] ^ word) * 0x9e3779b97f4a7c15u;
            lane[n] ^= lane[n] >> 29;
        }
    uint64_t print = 0;
    for (int n = 0; n < LANES; n++)
        print = mixed(print ^ lane[n]);
    *zero = !any;
    return print ? print : 1;
}

/* Remembers a unit of 16 bytes by its number; tells whether the same one was there before. */
static int known_unit(uint16_t *slots, const uint8_t *data, size_t unit) {
    uint64_t low = word_at(data + unit * UNIT), high = word_at(data + unit * UNIT + 8);
    size_t slot = mixed(low ^ (high << 1 | high >> 63)) % UNIT_SLOTS;
    for (; slots[slot]; slot = (slot + 1) % UNIT_SLOTS)
        if (!memcmp(data + (slots[slot] - 1u) * UNIT, data + unit * UNIT, UNIT))
            return 1;
    slots[slot] = (uint16_t)(unit + 1);
    return 0;
}

void region_scan(struct region_scan *found, struct byte_counts *total, const uint8_t *data, size_t size) {
    uint16_t slots[UNIT_SLOTS];
    memset(slots, 0, sizeof slots);
    count_bytes(found, total, data, size);
    for (size_t block = 0; block < size / BLOCK; block++) {
        const uint8_t *start = data + block * BLOCK;
        int zero, repeats = 0;
        found->prints[block] = fingerprint(start, &zero);
        if (zero) {
            found->marks[block] = SCAN_ZERO;
            continue;
        }
        for (size_t unit = 0; unit < BLOCK / UNIT; unit++)
            repeats |= known_unit(slots, data, block * (BLOCK / UNIT) + unit);
        found->marks[block] = (uint8_t)((different_values(start) < LEAST_DIFFERENT ? SCAN_FEW : 0) |
                                        (repeats ? SCAN_REPEATS : 0));
    }
}

struct slot {
    uint64_t print, block;
};

struct known_blocks {
    struct slot *slots;
    size_t count, used;
    unsigned thinned;
};

struct known_blocks *known_blocks_new(size_t slots) {
    struct known_blocks *known = calloc(1, sizeof *known);
    if (!known)
        return NULL;
    known->slots = calloc(slots, sizeof *known->slots);
    known->count = slots;
    if (!known->slots) {
        free(known);
        return NULL;
    }
    return known;
}

void known_blocks_free(struct known_blocks *known) {
    free(known->slots);
    free(known);
}

unsigned known_blocks_thinned(const struct known_blocks *known) { return known->thinned; }

/* The low bits say which are kept, the high ones where. */
static int is_kept(const struct known_blocks *known, uint64_t print) {
    return !(print & (((uint64_t)1 << known->thinned) - 1));
}

/* The slot that has it, or the empty one where it would go. */
static struct slot *find(const struct known_blocks *known, uint64_t print) {
    size_t at = (print >> 32) & (known->count - 1);
    while (known->slots[at].print && known->slots[at].print != print)
        at = (at + 1) & (known->count - 1);
    return &known->slots[at];
}

static int thin_out(struct known_blocks *known) {
    struct slot *kept = malloc(known->used * sizeof *kept);
    size_t count = 0;
    if (!kept)
        return 0;
    known->thinned++;
    for (size_t at = 0; at < known->count; at++)
        if (known->slots[at].print && is_kept(known, known->slots[at].print))
            kept[count++] = known->slots[at];
    memset(known->slots, 0, known->count * sizeof *known->slots);
    for (size_t at = 0; at < count; at++)
        *find(known, kept[at].print) = kept[at];
    known->used = count;
    free(kept);
    return 1;
}

int known_blocks_add(struct known_blocks *known, const uint64_t *prints, uint8_t *marks, uint64_t *earlier,
                     size_t count, uint64_t first) {
    for (size_t n = 0; n < count; n++) {
        if (marks[n] & SCAN_ZERO || !is_kept(known, prints[n]))
            continue;
        struct slot *slot = find(known, prints[n]);
        if (slot->print) {
            marks[n] |= SCAN_COPY;
            earlier[n] = slot->block;
            continue;
        }
        *slot = (struct slot){prints[n], first + n};
        if (++known->used > known->count / 4 * 3 && !thin_out(known))
            return 0;
    }
    return 1;
}
