/* See gcrypt.h. */
#include "cipher/gcrypt.h"

#include <gcrypt.h>
#include <pthread.h>

static void start_gcrypt(void) {
    if (!gcry_control(GCRYCTL_INITIALIZATION_FINISHED_P)) {
        gcry_check_version(NULL);
        gcry_control(GCRYCTL_DISABLE_SECMEM, 0);
        gcry_control(GCRYCTL_INITIALIZATION_FINISHED, 0);
    }
}

void use_gcrypt(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, start_gcrypt);
}

size_t hash_size(const char *hash) {
    use_gcrypt();
    return gcry_md_get_algo_dlen(gcry_md_map_name(hash));
}

int pbkdf2(const char *hash, const uint8_t *secret, size_t secret_size, const uint8_t *salt, size_t salt_size,
           unsigned long iterations, uint8_t *key, size_t key_size) {
    use_gcrypt();
    int algorithm = gcry_md_map_name(hash);
    if (algorithm == 0)
        return CIPHER_UNSUPPORTED;
    return gcry_kdf_derive(secret, secret_size, GCRY_KDF_PBKDF2, algorithm, salt, salt_size, iterations, key_size, key)
               ? CIPHER_FAILED
               : CIPHER_OK;
}

int hash_blocks(const char *hash, const uint8_t *data, size_t count, size_t block, uint8_t *digests) {
    use_gcrypt();
    int algorithm = gcry_md_map_name(hash);
    size_t size = gcry_md_get_algo_dlen(algorithm);
    if (algorithm == 0 || size == 0)
        return CIPHER_UNSUPPORTED;
    for (size_t i = 0; i < count; i++)
        gcry_md_hash_buffer(algorithm, digests + i * size, data + i * block, block);
    return CIPHER_OK;
}
