/* See sector_cipher.h. The primitives are libgcrypt's and OpenSSL's; the loop is ours. */
#include "cipher/sector_cipher.h"

#include <gcrypt.h>
#include <limits.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "cipher/gcrypt.h"

#define MAX_BLOCK 16
#define IV_SECTOR_SHIFT 9

/* One thread's cipher state; idle ones wait in the cipher's list, for a key schedule costs more than a small read. */
struct context {
    struct context *next;
    EVP_CIPHER_CTX *openssl[2]; /* decrypt, encrypt: made when first needed */
    EVP_CIPHER_CTX *openssl_essiv;
    gcry_cipher_hd_t gcrypt;
    gcry_cipher_hd_t gcrypt_essiv;
};

struct sector_cipher {
    EVP_CIPHER *evp, *evp_essiv;
    int gcrypt_algorithm, gcrypt_mode, essiv_hash;
    size_t block_size;
    enum sector_iv iv;
    unsigned benbi_shift;
    const uint8_t *key;
    size_t key_size, sector_size;
    pthread_mutex_t lock;
    struct context *idle;
};

static void context_free(struct context *context) {
    EVP_CIPHER_CTX_free(context->openssl[0]);
    EVP_CIPHER_CTX_free(context->openssl[1]);
    EVP_CIPHER_CTX_free(context->openssl_essiv);
    gcry_cipher_close(context->gcrypt);
    gcry_cipher_close(context->gcrypt_essiv);
    free(context);
}

static EVP_CIPHER_CTX *evp_context(const EVP_CIPHER *evp, const uint8_t *key, int encrypt) {
    EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new();
    if (context && EVP_CipherInit_ex2(context, evp, key, NULL, encrypt, NULL) == 1) {
        EVP_CIPHER_CTX_set_padding(context, 0);
        return context;
    }
    EVP_CIPHER_CTX_free(context);
    return NULL;
}

/* ESSIV's own cipher: the sector's number is encrypted under a hash of the key. */
static int essiv_init(const struct sector_cipher *cipher, struct context *context) {
    uint8_t salt[64];
    int hash = cipher->essiv_hash, status = CIPHER_OK;
    size_t salt_size = gcry_md_get_algo_dlen(hash);
    if (salt_size > sizeof salt)
        return CIPHER_UNSUPPORTED;
    gcry_md_hash_buffer(hash, salt, cipher->key, cipher->key_size);
    if (cipher->evp_essiv) {
        if ((size_t)EVP_CIPHER_get_key_length(cipher->evp_essiv) != salt_size)
            status = CIPHER_UNSUPPORTED;
        else if (!(context->openssl_essiv = evp_context(cipher->evp_essiv, salt, 1)))
            status = CIPHER_FAILED;
    } else if (gcry_cipher_open(&context->gcrypt_essiv, cipher->gcrypt_algorithm, GCRY_CIPHER_MODE_ECB, 0) ||
               gcry_cipher_setkey(context->gcrypt_essiv, salt, salt_size)) {
        status = CIPHER_UNSUPPORTED;
    }
    OPENSSL_cleanse(salt, sizeof salt);
    return status;
}

static struct context *context_new(const struct sector_cipher *cipher, int *status) {
    struct context *context = calloc(1, sizeof *context);
    *status = CIPHER_NO_MEMORY;
    if (!context)
        return NULL;
    *status = CIPHER_OK;
    if (!cipher->evp) {
        if (gcry_cipher_open(&context->gcrypt, cipher->gcrypt_algorithm, cipher->gcrypt_mode, 0))
            *status = CIPHER_UNSUPPORTED;
        else if (gcry_cipher_setkey(context->gcrypt, cipher->key, cipher->key_size))
            *status = CIPHER_BAD_KEY;
    }
    if (*status == CIPHER_OK && cipher->iv == IV_ESSIV)
        *status = essiv_init(cipher, context);
    if (*status == CIPHER_OK)
        return context;
    context_free(context);
    return NULL;
}

static struct context *context_take(struct sector_cipher *cipher, int *status) {
    pthread_mutex_lock(&cipher->lock);
    struct context *context = cipher->idle;
    if (context)
        cipher->idle = context->next;
    pthread_mutex_unlock(&cipher->lock);
    *status = CIPHER_OK;
    return context ? context : context_new(cipher, status);
}

static void context_give_back(struct sector_cipher *cipher, struct context *context) {
    pthread_mutex_lock(&cipher->lock);
    context->next = cipher->idle;
    cipher->idle = context;
    pthread_mutex_unlock(&cipher->lock);
}

static void store_le(uint8_t *to, uint64_t value, size_t size) {
    for (size_t i = 0; i < size; i++, value >>= 8)
        to[i] = (uint8_t)value;
}

static void store_be64(uint8_t *to, uint64_t value) {
    for (size_t i = 8; i-- > 0; value >>= 8)
        to[i] = (uint8_t)value;
}

static int sector_iv(const struct sector_cipher *cipher, struct context *context, uint64_t sector, uint8_t *iv) {
    int done;
    memset(iv, 0, MAX_BLOCK);
    switch (cipher->iv) {
    case IV_NONE:
    case IV_NULL:
        break;
    case IV_PLAIN: /* 32 bits: wraps at 2 TiB, as dm-crypt's does */
        store_le(iv, sector, 4);
        break;
    case IV_PLAIN64:
        store_le(iv, sector, 8);
        break;
    case IV_PLAIN64BE:
        store_be64(iv + cipher->block_size - 8, sector);
        break;
    case IV_BENBI: /* counts cipher blocks, from 1 */
        store_be64(iv + cipher->block_size - 8, (sector << cipher->benbi_shift) + 1);
        break;
    case IV_ESSIV:
        store_le(iv, sector, 8);
        if (context->openssl_essiv)
            return EVP_CipherUpdate(context->openssl_essiv, iv, &done, iv, (int)cipher->block_size) == 1;
        return !gcry_cipher_encrypt(context->gcrypt_essiv, iv, cipher->block_size, NULL, 0);
    }
    return 1;
}

static int crypt_openssl(const struct sector_cipher *cipher, struct context *context, int encrypt, uint8_t *data,
                         size_t size, uint64_t iv_sector) {
    EVP_CIPHER_CTX **evp = &context->openssl[encrypt];
    uint8_t iv[MAX_BLOCK];
    int done;
    if (!*evp && !(*evp = evp_context(cipher->evp, cipher->key, encrypt)))
        return 0;
    for (size_t at = 0; at < size; at += cipher->sector_size, iv_sector += cipher->sector_size >> IV_SECTOR_SHIFT) {
        if (cipher->iv != IV_NONE && (!sector_iv(cipher, context, iv_sector, iv) ||
                                      EVP_CipherInit_ex2(*evp, NULL, NULL, iv, -1, NULL) != 1))
            return 0;
        if (EVP_CipherUpdate(*evp, data + at, &done, data + at, (int)cipher->sector_size) != 1 ||
            (size_t)done != cipher->sector_size)
            return 0;
    }
    return 1;
}

static int crypt_gcrypt(const struct sector_cipher *cipher, struct context *context, int encrypt, uint8_t *data,
                        size_t size, uint64_t iv_sector) {
    gcry_error_t (*crypt)(gcry_cipher_hd_t, void *, size_t, const void *, size_t) =
        encrypt ? gcry_cipher_encrypt : gcry_cipher_decrypt;
    uint8_t iv[MAX_BLOCK];
    for (size_t at = 0; at < size; at += cipher->sector_size, iv_sector += cipher->sector_size >> IV_SECTOR_SHIFT) {
        if (cipher->iv != IV_NONE && (!sector_iv(cipher, context, iv_sector, iv) ||
                                      gcry_cipher_setiv(context->gcrypt, iv, cipher->block_size)))
            return 0;
        if (crypt(context->gcrypt, data + at, cipher->sector_size, NULL, 0))
            return 0;
    }
    return 1;
}

int sector_cipher_crypt(struct sector_cipher *cipher, int encrypt, uint8_t *data, size_t size, uint64_t iv_sector) {
    int status;
    if (size % cipher->sector_size)
        return CIPHER_FAILED;
    struct context *context = context_take(cipher, &status);
    if (!context)
        return status;
    int done = cipher->evp ? crypt_openssl(cipher, context, !!encrypt, data, size, iv_sector)
                           : crypt_gcrypt(cipher, context, encrypt, data, size, iv_sector);
    if (!done) { /* its state is unknown now */
        context_free(context);
        return CIPHER_FAILED;
    }
    context_give_back(cipher, context);
    return CIPHER_OK;
}

static int find_gcrypt_mode(const char *mode) {
    if (!strcmp(mode, "xts"))
        return GCRY_CIPHER_MODE_XTS;
    if (!strcmp(mode, "cbc"))
        return GCRY_CIPHER_MODE_CBC;
    return strcmp(mode, "ecb") ? GCRY_CIPHER_MODE_NONE : GCRY_CIPHER_MODE_ECB;
}

static int find_primitives(struct sector_cipher *cipher, const char *openssl_name, const char *openssl_essiv_name,
                           const char *gcrypt_name, const char *mode, const char *essiv_hash) {
    if (openssl_name) {
        cipher->evp = EVP_CIPHER_fetch(NULL, openssl_name, NULL);
        if (!cipher->evp)
            return CIPHER_UNSUPPORTED;
        if ((size_t)EVP_CIPHER_get_key_length(cipher->evp) != cipher->key_size)
            return CIPHER_BAD_KEY;
    } else {
        cipher->gcrypt_algorithm = gcry_cipher_map_name(gcrypt_name);
        cipher->gcrypt_mode = find_gcrypt_mode(mode);
        if (!cipher->gcrypt_algorithm || cipher->gcrypt_mode == GCRY_CIPHER_MODE_NONE)
            return CIPHER_UNSUPPORTED;
    }
    if (cipher->iv != IV_ESSIV)
        return CIPHER_OK;
    cipher->essiv_hash = gcry_md_map_name(essiv_hash);
    if (openssl_essiv_name)
        cipher->evp_essiv = EVP_CIPHER_fetch(NULL, openssl_essiv_name, NULL);
    return cipher->essiv_hash && (!openssl_essiv_name || cipher->evp_essiv) ? CIPHER_OK : CIPHER_UNSUPPORTED;
}

/* Makes a context complete: OpenSSL has one for each direction. */
static int complete(const struct sector_cipher *cipher, struct context *context) {
    for (int encrypt = 0; cipher->evp && encrypt < 2; encrypt++)
        if (!context->openssl[encrypt] && !(context->openssl[encrypt] = evp_context(cipher->evp, cipher->key, encrypt)))
            return CIPHER_BAD_KEY;
    return CIPHER_OK;
}

int sector_cipher_prepare(struct sector_cipher *cipher, size_t threads) {
    int status = CIPHER_OK;
    struct context *taken = NULL;
    for (size_t i = 0; i < threads && status == CIPHER_OK; i++) {
        struct context *context = context_take(cipher, &status);
        if (!context)
            break;
        status = complete(cipher, context);
        context->next = taken;
        taken = context;
    }
    while (taken) {
        struct context *context = taken;
        taken = context->next;
        context_give_back(cipher, context);
    }
    return status;
}

struct sector_cipher *sector_cipher_new(const char *openssl_name, const char *openssl_essiv_name,
                                        const char *gcrypt_name, const char *mode, size_t block_size,
                                        enum sector_iv iv, const char *essiv_hash, const uint8_t *key,
                                        size_t key_size, size_t sector_size, int *status) {
    use_gcrypt();
    struct sector_cipher *cipher = calloc(1, sizeof *cipher);
    *status = CIPHER_NO_MEMORY;
    if (!cipher)
        return NULL;
    pthread_mutex_init(&cipher->lock, NULL);
    cipher->iv = iv;
    cipher->block_size = block_size;
    cipher->benbi_shift = block_size == 8 ? 6 : 5; /* 512 bytes over the cipher's blocks, as a power of two */
    cipher->key = key;
    cipher->key_size = key_size;
    cipher->sector_size = sector_size;
    *status = find_primitives(cipher, openssl_name, openssl_essiv_name, gcrypt_name, mode, essiv_hash);
    if (*status == CIPHER_OK)
        *status = sector_cipher_prepare(cipher, 1); /* a key that the library refuses is found out now, not at the first write */
    if (*status == CIPHER_OK)
        return cipher;
    sector_cipher_free(cipher);
    return NULL;
}

void sector_cipher_free(struct sector_cipher *cipher) {
    while (cipher->idle) {
        struct context *context = cipher->idle;
        cipher->idle = context->next;
        context_free(context);
    }
    EVP_CIPHER_free(cipher->evp);
    EVP_CIPHER_free(cipher->evp_essiv);
    pthread_mutex_destroy(&cipher->lock);
    free(cipher);
}
