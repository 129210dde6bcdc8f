/* The AF splitter: a key spread over stripes, so that losing any one of them loses the key. */
#ifndef LUKSHDRFS_ANTI_FORENSIC_H
#define LUKSHDRFS_ANTI_FORENSIC_H

#include <stddef.h>
#include <stdint.h>

/* Material holds `stripes` pieces of `key_size` bytes (LUKS1 specification 1.2.3, section 2.4). Splitting: all pieces but
 * the last are random already, and the last is computed. Merging: the other way round. Returns CIPHER_OK or
 * CIPHER_UNSUPPORTED. */
int af_split(const char *hash, const uint8_t *key, uint8_t *material, size_t key_size, unsigned stripes);
int af_merge(const char *hash, uint8_t *key, const uint8_t *material, size_t key_size, unsigned stripes);

#endif
