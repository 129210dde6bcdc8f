"""SectorCipher against `cryptography`, sector by sector: slow and plain, and another library's code around it."""

from __future__ import annotations

import hashlib
import random
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography.hazmat.decrepit.ciphers.algorithms import CAST5, Camellia
from cryptography.hazmat.primitives.ciphers import Cipher, CipherAlgorithm
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC, ECB, XTS
from hypothesis import given, settings
from hypothesis import strategies as st

from lukshdrfs.cipher import CipherSpec, Engine, SectorCipher, usual_engine
from lukshdrfs.errors import HeaderError, LukshdrfsError, UnsupportedFeature
from lukshdrfs.secret import SecretBytes
from lukshdrfs.sectors import SECTOR_SIZES

ENGINES: tuple[Engine, ...] = ("openssl", "gcrypt")
PRIMITIVES: dict[str, type[CipherAlgorithm]] = {"aes": AES, "camellia": Camellia, "cast5": CAST5}

AES_SPECS = (
    "aes-xts-plain64",
    "aes-xts-plain64be",
    "aes-xts-plain",
    "aes-xts-null",
    "aes-xts-benbi",
    "aes-xts-essiv:sha256",
    "aes-cbc-null",
    "aes-cbc-plain",
    "aes-cbc-plain64",
    "aes-cbc-plain64be",
    "aes-cbc-benbi",
    "aes-cbc-essiv:sha256",
    "aes-cbc-essiv:md5",
    "aes-ecb",
)
OTHER_SPECS = (
    "camellia-xts-plain64",
    "camellia-cbc-plain64",
    "camellia-cbc-essiv:sha256",
    "cast5-cbc-plain64",
    "cast5-cbc-plain",
    "cast5-cbc-benbi",
    "cast5-cbc-plain64be",
    "cast5-cbc-essiv:md5",
    "cast5-ecb",
)


def reference_iv(spec: CipherSpec, primitive: type[CipherAlgorithm], key: bytes, iv_sector: int, block: int) -> bytes:
    """Return a sector's IV as the comment "Different IV generation algorithms" in Linux' dm-crypt.c has it."""
    number = iv_sector % (1 << 64)
    if spec.iv == "null":
        return bytes(block)
    if spec.iv == "plain":
        return struct.pack("<I", number % (1 << 32)).ljust(block, b"\0")
    if spec.iv == "plain64":
        return struct.pack("<Q", number).ljust(block, b"\0")
    if spec.iv == "plain64be":
        return struct.pack(">Q", number).rjust(block, b"\0")
    if spec.iv == "benbi":  # the number of the sector's first cipher block, counted from 1
        return struct.pack(">Q", (number * (512 // block) + 1) % (1 << 64)).rjust(block, b"\0")
    assert spec.iv == "essiv"
    salt = hashlib.new(spec.iv_hash, key).digest()
    encryptor = Cipher(primitive(salt), ECB()).encryptor()  # type: ignore[call-arg]
    return encryptor.update(struct.pack("<Q", number).ljust(block, b"\0"))


def reference(text: str, key: bytes, sector_size: int, data: bytes, iv_sector: int) -> bytes:
    """Encrypt whole sectors, one after the other."""
    spec = CipherSpec.parse(text)
    primitive = PRIMITIVES[spec.cipher]
    block = 8 if spec.cipher == "cast5" else 16
    encrypted = b""
    for at in range(0, len(data), sector_size):
        if spec.mode == "ecb":
            mode: XTS | CBC | ECB = ECB()
        else:
            iv = reference_iv(spec, primitive, key, iv_sector + at // 512, block)
            mode = XTS(iv) if spec.mode == "xts" else CBC(iv)
        if spec.mode == "xts" and primitive is Camellia:
            encrypted += camellia_xts(key, iv, data[at : at + sector_size])
            continue
        encryptor = Cipher(primitive(key), mode).encryptor()  # type: ignore[call-arg]
        encrypted += encryptor.update(data[at : at + sector_size]) + encryptor.finalize()
    return encrypted


def camellia_xts(key: bytes, tweak: bytes, data: bytes) -> bytes:
    """Encrypt one sector by XTS over single blocks of Camellia (IEEE 1619-2007, section 5.3)."""
    half = len(key) // 2
    block = Cipher(Camellia(key[:half]), ECB()).encryptor()
    mask = int.from_bytes(Cipher(Camellia(key[half:]), ECB()).encryptor().update(tweak), "little")
    encrypted = b""
    for at in range(0, len(data), 16):
        masked = (int.from_bytes(data[at : at + 16], "little") ^ mask).to_bytes(16, "little")
        encrypted += (int.from_bytes(block.update(masked), "little") ^ mask).to_bytes(16, "little")
        mask = (mask << 1) ^ (0x87 if mask >> 127 else 0)
        mask &= (1 << 128) - 1
    return encrypted


def engines_of(text: str) -> tuple[Engine, ...]:
    """Return the libraries that have a cipher; of AES there are two."""
    return ENGINES if text.startswith("aes") else ("gcrypt",)


def encrypted_by(text: str, key: bytes, sector_size: int, data: bytes, iv_sector: int, engine: Engine | None) -> bytes:
    """Encrypt with our own cipher; that it can be undone is checked on the way."""
    with SectorCipher(CipherSpec.parse(text), SecretBytes.copy_of(key), sector_size, engine) as cipher:
        buffer = bytearray(data)
        cipher.encrypt(buffer, iv_sector)
        encrypted = bytes(buffer)
        cipher.decrypt(memoryview(buffer), iv_sector)
        assert bytes(buffer) == data
    return encrypted


@st.composite
def sector_runs(draw: st.DrawFn, specs: tuple[str, ...]) -> tuple[str, bytes, int, bytes, int]:
    """Return a specification, a key, a sector size, some sectors and the first one's number."""
    text = draw(st.sampled_from(specs))
    spec = CipherSpec.parse(text)
    rng = random.Random(draw(st.integers(0, 1 << 32)))
    # `cryptography` has no AES-192-XTS
    sizes = [size for size in spec.key_sizes if size != 48 or spec.cipher != "aes"]
    if spec.iv_hash == "md5" and spec.cipher == "aes":
        sizes = [16]
    sector_size = draw(st.sampled_from(SECTOR_SIZES))
    number = draw(
        st.integers(0, (1 << 64) - 1) | st.sampled_from([0, 2**32 - 1, 2**32, 2**32 + 1, 2**64 - 1, 2**64 - 3])
    )
    data = rng.randbytes(draw(st.integers(1, 5)) * sector_size)
    return text, rng.randbytes(draw(st.sampled_from(sizes))), sector_size, data, number


@settings(max_examples=300, deadline=None)
@given(sector_runs(AES_SPECS))
def test_aes_is_what_the_reference_says(run: tuple[str, bytes, int, bytes, int]) -> None:
    """In every mode, IV, key size and sector size, both libraries give the reference's ciphertext and undo it."""
    expected = reference(*run)

    for engine in ENGINES:
        assert encrypted_by(*run, engine) == expected, engine


@settings(max_examples=150, deadline=None)
@given(sector_runs(OTHER_SPECS))
def test_camellia_and_cast5_are_what_the_reference_says(run: tuple[str, bytes, int, bytes, int]) -> None:
    """The ciphers that libgcrypt alone serves agree with the ones of OpenSSL's legacy provider."""
    assert encrypted_by(*run, None) == reference(*run)


@pytest.mark.parametrize(
    "text",
    [
        "aes-xts-plain64",
        "serpent-xts-plain64",
        "serpent-cbc-plain64",
        "serpent-ecb",
        "twofish-xts-plain64",
        "twofish-cbc-essiv:sha256",
    ],
)
@pytest.mark.parametrize("sector_size", SECTOR_SIZES)
def test_every_key_size_can_be_used(text: str, sector_size: int) -> None:
    """A cipher takes each key size that it claims, undoes itself, and another key gives another ciphertext."""
    for size in CipherSpec.parse(text).key_sizes:
        key, other = random.Random(1).randbytes(size), random.Random(2).randbytes(size)
        data = bytes(2 * sector_size)
        assert encrypted_by(text, key, sector_size, data, 7, None) != encrypted_by(
            text, other, sector_size, data, 7, None
        )


@pytest.mark.parametrize("engine", ENGINES)
def test_xts_known_answers(engine: Engine) -> None:
    """
    The two published XTS vectors of 512 bytes come out.

    Source: IEEE Std 1619-2007 (which NIST SP 800-38E adopts), annex B, vector 4 (AES-128, data unit 0) and vector 10
    (AES-256, data unit 0xff). The plaintext is the bytes 00 to ff, twice. The ciphertext's first 32 bytes are given
    here; a second implementation gives all 512.
    """
    key1_128 = bytes.fromhex("27182818284590452353602874713526")
    key2_128 = bytes.fromhex("31415926535897932384626433832795")
    key1_256 = bytes.fromhex("2718281828459045235360287471352662497757247093699959574966967627")
    key2_256 = bytes.fromhex("3141592653589793238462643383279502884197169399375105820974944592")
    plaintext = bytes(range(256)) * 2

    vector4 = encrypted_by("aes-xts-plain64", key1_128 + key2_128, 512, plaintext, 0, engine)
    vector10 = encrypted_by("aes-xts-plain64", key1_256 + key2_256, 512, plaintext, 0xFF, engine)

    assert vector4 == reference("aes-xts-plain64", key1_128 + key2_128, 512, plaintext, 0)
    assert vector10 == reference("aes-xts-plain64", key1_256 + key2_256, 512, plaintext, 0xFF)
    assert vector4[:32].hex() == "27a7479befa1d476489f308cd4cfa6e2a96e4bbe3208ff25287dd3819616e89c"
    assert vector10[:32].hex() == "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b"


@pytest.mark.parametrize("text", AES_SPECS)
@pytest.mark.parametrize("engine", ENGINES)
def test_how_a_run_is_split_does_not_matter(text: str, engine: Engine) -> None:
    """Sectors one by one, each under its own number, give what the whole run gives."""
    rng = random.Random(3)
    spec = CipherSpec.parse(text)
    key = rng.randbytes(16 if spec.iv_hash == "md5" else 32)
    for sector_size in SECTOR_SIZES:
        data = rng.randbytes(6 * sector_size)
        with SectorCipher(spec, SecretBytes.copy_of(key), sector_size, engine) as cipher:
            whole, pieces = bytearray(data), bytearray(data)
            cipher.encrypt(whole, 40)
            for at in range(0, len(data), sector_size):
                cipher.encrypt(memoryview(pieces)[at : at + sector_size], 40 + at // 512)
        assert pieces == whole


@pytest.mark.parametrize("engine", ENGINES)
def test_a_large_sectors_number_counts_512_bytes(engine: Engine) -> None:
    """The second sector of 4096 bytes has the number 8, not 1: `iv_sector` is in units of 512 bytes."""
    key = random.Random(4).randbytes(64)
    run = encrypted_by("aes-xts-plain64", key, 4096, bytes(8192), 0, engine)

    assert run[4096:] == encrypted_by("aes-xts-plain64", key, 4096, bytes(4096), 8, engine)
    assert run[4096:] != encrypted_by("aes-xts-plain64", key, 4096, bytes(4096), 1, engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_plain_wraps_at_2_tib_and_plain64_does_not(engine: Engine) -> None:
    """Sector 2^32 + n has the IV of sector n under `plain`, and one of its own under `plain64`."""
    key = random.Random(5).randbytes(64)
    for number in (0, 1, 7, 2**32 - 1):
        near, far = (
            encrypted_by("aes-xts-plain", key, 512, bytes(512), number + wrap, engine) for wrap in (0, 1 << 32)
        )
        assert near == far
        near, far = (
            encrypted_by("aes-xts-plain64", key, 512, bytes(512), number + wrap, engine) for wrap in (0, 1 << 32)
        )
        assert near != far


@pytest.mark.parametrize("text", AES_SPECS)
def test_the_number_wraps_at_2_64(text: str) -> None:
    """Numbers are taken modulo 2^64, at the start of a run and within it, as the kernel's `sector_t` is."""
    key = random.Random(6).randbytes(16 if text.endswith("md5") else 32)
    for engine in ENGINES:
        run = encrypted_by(text, key, 512, bytes(2048), (1 << 64) - 2, engine)
        assert run == encrypted_by(text, key, 512, bytes(1024), -2, engine) + encrypted_by(
            text, key, 512, bytes(1024), 0, engine
        )
        assert run[1024:] == encrypted_by(text, key, 512, bytes(1024), 1 << 64, engine)


@pytest.mark.parametrize("text", ["aes-xts-plain64", "serpent-xts-plain64", "camellia-xts-plain64"])
def test_equal_halves_of_an_xts_key_are_refused(text: str) -> None:
    """A key whose two halves are one is refused before anything is encrypted with it."""
    for size in CipherSpec.parse(text).key_sizes:
        half = random.Random(7).randbytes(size // 2)
        with pytest.raises(UnsupportedFeature, match="halves"):
            SectorCipher(CipherSpec.parse(text), SecretBytes.copy_of(half * 2), 512)


def test_equal_halves_of_a_cbc_key_are_fine() -> None:
    """Only XTS has two keys in one; a CBC key may be anything."""
    encrypted_by("aes-cbc-plain64", bytes(32), 512, bytes(512), 0, None)


@pytest.mark.parametrize("text", [*AES_SPECS, *OTHER_SPECS, "serpent-xts-plain64", "twofish-cbc-plain64"])
def test_a_key_of_another_length_is_refused(text: str) -> None:
    """A key that is not as long as the cipher's is refused; the message says both lengths."""
    spec = CipherSpec.parse(text)
    for size in set(range(80)) - set(spec.key_sizes):
        with pytest.raises(UnsupportedFeature, match=f"not {size * 8}"):
            SectorCipher(spec, SecretBytes(size), 512)


@pytest.mark.parametrize("text", ["aes-cbc-essiv:sha1", "aes-cbc-essiv:sha512", "cast5-cbc-essiv:sha256"])
@pytest.mark.parametrize("engine", [None, *ENGINES])
def test_an_essiv_hash_that_gives_no_key_is_refused(text: str, engine: Engine | None) -> None:
    """ESSIV's hash is a key of the same cipher, so a digest of another length cannot be used."""
    key = SecretBytes.copy_of(bytes(range(CipherSpec.parse(text).key_sizes[-1])))
    with pytest.raises(UnsupportedFeature):
        SectorCipher(CipherSpec.parse(text), key, 512, engine)


@pytest.mark.parametrize("sector_size", [-512, 0, 1, 256, 511, 513, 1536, 8192])
def test_other_sector_sizes_are_refused(sector_size: int) -> None:
    """A sector size that LUKS2 does not allow is refused."""
    with pytest.raises(HeaderError):
        SectorCipher(CipherSpec.parse("aes-xts-plain64"), SecretBytes.copy_of(bytes(range(64))), sector_size)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("sector_size", SECTOR_SIZES)
def test_a_part_of_a_sector_is_refused_and_stays_as_it_is(engine: Engine, sector_size: int) -> None:
    """Data that are not whole sectors are an error, and not a byte of them is changed."""
    with SectorCipher(
        CipherSpec.parse("aes-xts-plain64"), SecretBytes.copy_of(bytes(range(64))), sector_size, engine
    ) as cipher:
        for size in (1, 16, sector_size - 1, sector_size + 1, 2 * sector_size - 16):
            data = bytearray(size)
            with pytest.raises(LukshdrfsError):
                cipher.encrypt(data, 0)
            assert data == bytes(size)


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_encrypts_to_nothing(engine: Engine) -> None:
    """No sectors are a run too."""
    assert encrypted_by("aes-xts-plain64", bytes(range(64)), 512, b"", 0, engine) == b""


def test_read_only_memory_is_refused() -> None:
    """`bytes`, which must never change, cannot be encrypted in place."""
    with SectorCipher(CipherSpec.parse("aes-xts-plain64"), SecretBytes.copy_of(bytes(range(64))), 512) as cipher:
        constant = memoryview(bytes(512))
        with pytest.raises((TypeError, BufferError, ValueError)):
            cipher.encrypt(constant, 0)
        assert bytes(constant) == bytes(512)


@pytest.mark.parametrize("text", ["aes-xts-plain64", "aes-cbc-essiv:sha256", "aes-ecb"])
@pytest.mark.parametrize("engine", ENGINES)
def test_threads_share_a_cipher(text: str, engine: Engine) -> None:
    """Many threads on one cipher, in both directions, each get what one thread alone gets."""
    spec = CipherSpec.parse(text)
    key = random.Random(8).randbytes(32)
    plain = random.Random(9).randbytes(64 * 512)
    expected = encrypted_by(text, key, 512, plain, 1000, engine)

    with SectorCipher(spec, SecretBytes.copy_of(key), 512, engine) as cipher:

        def round_trips(seed: int) -> bool:
            rng = random.Random(seed)
            for _ in range(100):
                first = rng.randrange(64)
                part = slice(first * 512, rng.randrange(first + 1, 65) * 512)
                data = bytearray(plain[part])
                cipher.encrypt(data, 1000 + first)
                if data != expected[part]:
                    return False
                cipher.decrypt(data, 1000 + first)
                if data != plain[part]:
                    return False
            return True

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(round_trips, range(8)))


def test_the_key_that_was_given_may_be_wiped() -> None:
    """A cipher has its own copy of the key: the one that it was made from can go at once."""
    key = bytes(range(64))
    with SecretBytes.copy_of(key) as secret:
        cipher = SectorCipher(CipherSpec.parse("aes-xts-plain64"), secret, 512)
    with cipher:
        data = bytearray(512)
        cipher.encrypt(data, 0)
    assert bytes(data) == reference("aes-xts-plain64", key, 512, bytes(512), 0)


def test_a_closed_cipher_says_so() -> None:
    """After `close`, which may be called again, encrypting is an error that says why."""
    cipher = SectorCipher(CipherSpec.parse("aes-xts-plain64"), SecretBytes.copy_of(bytes(range(64))), 512)
    cipher.close()
    cipher.close()

    with pytest.raises(LukshdrfsError, match="closed"):
        cipher.encrypt(bytearray(512), 0)


def test_a_cipher_that_lives_until_the_programs_end_is_quiet() -> None:
    """A cipher that is still there when the interpreter ends says nothing then."""
    program = """
from lukshdrfs.cipher import CipherSpec, SectorCipher
from lukshdrfs.secret import SecretBytes
cipher = SectorCipher(CipherSpec.parse("aes-xts-plain64"), SecretBytes.copy_of(bytes(range(64))), 512)
class Keeper: pass
keeper = Keeper(); keeper.itself = keeper; keeper.cipher = cipher  # a cycle: as late as can be
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert (done.stdout, done.stderr) == ("", "")


def test_a_cipher_shows_no_key() -> None:
    """A cipher's text has nothing of its key, as text or as hexadecimal digits."""
    key = random.Random(10).randbytes(64)
    with SectorCipher(CipherSpec.parse("aes-xts-plain64"), SecretBytes.copy_of(key), 512) as cipher:
        shown = repr(cipher) + repr(vars(cipher))
    assert key.hex() not in shown
    assert repr(key)[2:-1] not in shown


def test_libgcrypt_serves_all_but_ecb() -> None:
    """The usual engine is the faster one where both have the cipher, and the only one elsewhere."""
    engines = {text: usual_engine(CipherSpec.parse(text)) for text in ("aes-xts-plain64", "aes-ecb", "serpent-ecb")}

    assert engines == {"aes-xts-plain64": "gcrypt", "aes-ecb": "openssl", "serpent-ecb": "gcrypt"}


@pytest.mark.parametrize("text", ["serpent-xts-plain64", "cast5-cbc-plain64"])
def test_an_engine_without_the_cipher_is_refused(text: str) -> None:
    """Asking OpenSSL for a cipher that it does not serve here is an error, not another library's answer."""
    size = CipherSpec.parse(text).key_sizes[0]
    with pytest.raises(UnsupportedFeature):
        SectorCipher(CipherSpec.parse(text), SecretBytes.copy_of(bytes(range(size))), 512, "openssl")
