/* Libgcrypt, ready to be used, and its hashes by its own names. */
#ifndef LUKSHDRFS_GCRYPT_H
#define LUKSHDRFS_GCRYPT_H

#include <stddef.h>
#include <stdint.h>

/* What functions of this room return. */
enum cipher_status { CIPHER_OK = 0, CIPHER_UNSUPPORTED = -1, CIPHER_BAD_KEY = -2, CIPHER_NO_MEMORY = -3, CIPHER_FAILED = -4 };

/* To be called before anything of libgcrypt's; as often as one likes. */
void use_gcrypt(void);

/* Returns the bytes of the hash's digest, 0 if libgcrypt does not have it. */
size_t hash_size(const char *hash);

/* PBKDF2 (RFC 8018, section 5.2) with HMAC of one of libgcrypt's hashes. */
int pbkdf2(const char *hash, const uint8_t *secret, size_t secret_size, const uint8_t *salt, size_t salt_size,
           unsigned long iterations, uint8_t *key, size_t key_size);

/* Hashes `count` blocks of `block` bytes, one after the other, into as many digests without gaps. */
int hash_blocks(const char *hash, const uint8_t *data, size_t count, size_t block, uint8_t *digests);

#endif
