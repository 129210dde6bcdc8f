/* The sector ciphers of dm-crypt over a contiguous run of sectors. */
#ifndef LUKSHDRFS_SECTOR_CIPHER_H
#define LUKSHDRFS_SECTOR_CIPHER_H

#include <stddef.h>
#include <stdint.h>

#include "cipher/gcrypt.h"

/* How a sector's IV follows from its number (Linux, drivers/md/dm-crypt.c, "Different IV generation algorithms"). */
enum sector_iv { IV_NONE, IV_NULL, IV_PLAIN, IV_PLAIN64, IV_PLAIN64BE, IV_ESSIV, IV_BENBI };

struct sector_cipher;

/* Makes a cipher that any number of threads may use at once.
 * openssl_name: a libcrypto cipher such as "AES-256-XTS", or NULL to take gcrypt_name and mode from libgcrypt.
 * essiv_hash: libgcrypt's name of the hash over the key; for IV_ESSIV only.
 * The key is not copied: it must stay where it is until sector_cipher_free(). */
struct sector_cipher *sector_cipher_new(const char *openssl_name, const char *openssl_essiv_name,
                                        const char *gcrypt_name, const char *mode, size_t block_size,
                                        enum sector_iv iv, const char *essiv_hash, const uint8_t *key,
                                        size_t key_size, size_t sector_size, int *status);

/* Has all ready that so many threads need at the same time: they take no more memory then. Returns CIPHER_OK or an error. */
int sector_cipher_prepare(struct sector_cipher *cipher, size_t threads);

/* Crypts size bytes of whole sectors in place. iv_sector: the first sector's number, counted in 512 bytes. */
int sector_cipher_crypt(struct sector_cipher *cipher, int encrypt, uint8_t *data, size_t size, uint64_t iv_sector);

void sector_cipher_free(struct sector_cipher *cipher);

#endif
