/* The sector ciphers of dm-crypt over a contiguous run of sectors, and LUKS's anti-forensic splitter. */
#ifndef LUKSHDRFS_SECTOR_CIPHER_H
#define LUKSHDRFS_SECTOR_CIPHER_H

#include <stddef.h>
#include <stdint.h>

/* How a sector's IV follows from its number (Linux, drivers/md/dm-crypt.c, "Different IV generation algorithms"). */
enum sector_iv { IV_NONE, IV_NULL, IV_PLAIN, IV_PLAIN64, IV_PLAIN64BE, IV_ESSIV, IV_BENBI };

enum cipher_status { CIPHER_OK = 0, CIPHER_UNSUPPORTED = -1, CIPHER_BAD_KEY = -2, CIPHER_NO_MEMORY = -3, CIPHER_FAILED = -4 };

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

/* AF splitter (LUKS1 specification 1.2.3, section 2.4): material holds stripes pieces of key_size bytes.
 * split: all pieces but the last are random already; computes the last. merge: the other way round. */
int af_split(const char *hash, const uint8_t *key, uint8_t *material, size_t key_size, unsigned stripes);
int af_merge(const char *hash, uint8_t *key, const uint8_t *material, size_t key_size, unsigned stripes);

/* Bytes of the hash's digest, 0 if libgcrypt does not have it. */
size_t hash_size(const char *hash);

/* PBKDF2 (RFC 8018, section 5.2) with HMAC of one of libgcrypt's hashes. */
int pbkdf2(const char *hash, const uint8_t *secret, size_t secret_size, const uint8_t *salt, size_t salt_size,
           unsigned long iterations, uint8_t *key, size_t key_size);

#endif
