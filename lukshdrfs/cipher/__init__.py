"""The sector ciphers under dm-crypt's names, over contiguous runs of sectors. Knows nothing of LUKS volumes."""

from lukshdrfs.cipher.anti_forensic import af_merge, af_split
from lukshdrfs.cipher.gcrypt_hashes import gcrypt_hash_blocks, gcrypt_hash_size, gcrypt_pbkdf2_into
from lukshdrfs.cipher.sector_cipher import Engine, SectorCipher, usual_engine
from lukshdrfs.cipher.spec import CipherSpec, check_sector_size

__all__ = [
    "CipherSpec",
    "Engine",
    "SectorCipher",
    "af_merge",
    "af_split",
    "check_sector_size",
    "gcrypt_hash_blocks",
    "gcrypt_hash_size",
    "gcrypt_pbkdf2_into",
    "usual_engine",
]
