/* See anti_forensic.h. */
#include "cipher/anti_forensic.h"

#include <gcrypt.h>
#include <openssl/crypto.h>
#include <string.h>

#include "cipher/gcrypt.h"

/* H1 of the specification: each digest-sized piece becomes the hash of its number and itself, the last one cut off. */
static int diffuse(int hash, uint8_t *block, size_t size) {
    uint8_t number[4], digest[64];
    size_t step = gcry_md_get_algo_dlen(hash);
    gcry_error_t failed = 0;
    if (step == 0 || step > sizeof digest)
        return 0;
    for (size_t at = 0, i = 0; at < size && !failed; at += step, i++) {
        size_t piece = size - at < step ? size - at : step;
        uint32_t n = (uint32_t)i;
        for (size_t j = 4; j-- > 0; n >>= 8)
            number[j] = (uint8_t)n;
        gcry_buffer_t parts[2] = {{.data = number, .len = sizeof number}, {.data = block + at, .len = piece}};
        failed = gcry_md_hash_buffers(hash, 0, digest, parts, 2);
        memcpy(block + at, digest, piece);
    }
    OPENSSL_cleanse(digest, sizeof digest);
    return !failed;
}

/* Folds all stripes but the last into block, which is all zeros at first. */
static int fold(const char *hash, uint8_t *block, const uint8_t *material, size_t key_size, unsigned stripes) {
    use_gcrypt();
    int algorithm = gcry_md_map_name(hash);
    memset(block, 0, key_size);
    for (unsigned s = 0; s + 1 < stripes; s++) {
        for (size_t i = 0; i < key_size; i++)
            block[i] ^= material[s * key_size + i];
        if (!diffuse(algorithm, block, key_size))
            return CIPHER_UNSUPPORTED;
    }
    return CIPHER_OK;
}

int af_merge(const char *hash, uint8_t *key, const uint8_t *material, size_t key_size, unsigned stripes) {
    int status = fold(hash, key, material, key_size, stripes);
    const uint8_t *last = material + (stripes - 1) * key_size;
    for (size_t i = 0; i < key_size; i++)
        key[i] ^= last[i];
    return status;
}

int af_split(const char *hash, const uint8_t *key, uint8_t *material, size_t key_size, unsigned stripes) {
    uint8_t *last = material + (stripes - 1) * key_size;
    int status = fold(hash, last, material, key_size, stripes);
    for (size_t i = 0; i < key_size; i++)
        last[i] ^= key[i];
    return status;
}
