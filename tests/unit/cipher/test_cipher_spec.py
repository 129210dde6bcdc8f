"""CipherSpec: dm-crypt's names of ciphers, read, written and refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lukshdrfs.cipher import CipherSpec, check_sector_size
from lukshdrfs.cipher.spec import ALGORITHMS, ESSIV_HASHES, IVS
from lukshdrfs.errors import HeaderError, LukshdrfsError, UnsupportedFeature
from lukshdrfs.sectors import SECTOR_SIZES

WITH_16_BYTE_BLOCKS = sorted(set(ALGORITHMS) - {"cast5"})


@st.composite
def legal_texts(draw: st.DrawFn) -> str:
    """Return a specification in full that is implemented."""
    mode = draw(st.sampled_from(["xts", "cbc", "ecb"]))
    cipher = draw(st.sampled_from(WITH_16_BYTE_BLOCKS if mode == "xts" else sorted(ALGORITHMS)))
    if mode == "ecb":
        return f"{cipher}-ecb"
    iv = draw(st.sampled_from(IVS))
    return f"{cipher}-{mode}-{iv}" + (f":{draw(st.sampled_from(sorted(ESSIV_HASHES)))}" if iv == "essiv" else "")


@given(legal_texts())
def test_what_is_printed_is_what_was_parsed(text: str) -> None:
    """A specification in full comes out as it went in, and parses to an equal one."""
    spec = CipherSpec.parse(text)

    assert str(spec) == text
    assert CipherSpec.parse(str(spec)) == spec


@pytest.mark.parametrize(
    ("short", "full"), [("aes", "aes-cbc-plain"), ("aes-plain", "aes-cbc-plain"), ("serpent", "serpent-cbc-plain")]
)
def test_old_short_forms_are_dm_crypts(short: str, full: str) -> None:
    """A cipher alone, and `cipher-plain`, mean CBC with the 32-bit IV, as in `crypt_ctr_cipher_old` of dm-crypt.c."""
    assert str(CipherSpec.parse(short)) == full


@pytest.mark.parametrize("options", ["", "sha256", "nonsense", "sha256:sha256", "a-b"])
@pytest.mark.parametrize("iv", sorted(set(IVS) - {"essiv"}))
def test_options_mean_something_to_essiv_only(iv: str, options: str) -> None:
    """What follows any other IV is ignored, as dm-crypt and QEMU ignore it."""
    assert CipherSpec.parse(f"aes-xts-{iv}:{options}") == CipherSpec.parse(f"aes-xts-{iv}")
    assert str(CipherSpec.parse(f"aes-cbc-{iv}:{options}")) == f"aes-cbc-{iv}"


@pytest.mark.parametrize(
    "text",
    [
        "null", "cipher_null", "cipher_null-ecb", "cipher_null-cbc-plain", "null-ecb", "", "-", "-cbc-plain",
        "capi:xts(aes)-plain64", "capi:cipher_null-ecb", "capi:",
    ],
)  # fmt: skip
def test_what_does_not_encrypt_is_refused(text: str) -> None:
    """Null ciphers, empty names and the kernel's own notation are refused, and the message names them."""
    with pytest.raises(UnsupportedFeature, match="refused") as caught:
        CipherSpec.parse(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("rot13-xts-plain64", "rot13"),
        ("xchacha20,aes-adiantum-plain64", "xchacha20,aes"),
        ("aes:2-cbc-plain", "aes:2"),
        ("AES-xts-plain64", "AES"),
        (" aes-xts-plain64", " aes"),
        ("aes-lrw-benbi", "lrw"),
        ("aes-gcm-random", "gcm"),
        ("aes-XTS-plain64", "XTS"),
        ("aes-xts", "IV ''"),
        ("aes-xts-plain65", "plain65"),
        ("aes-xts-plain64 ", "plain64 "),
        ("aes-cbc-lmk", "lmk"),
        ("aes-cbc-tcw", "tcw"),
        ("aes-cbc-eboiv", "eboiv"),
        ("aes-cbc-random", "random"),
        ("aes-cbc-essiv", "hash ''"),
        ("aes-cbc-essiv:crc32", "crc32"),
        ("aes-cbc-essiv:sha256:sha256", "sha256:sha256"),
        ("aes-cbc-essiv:", "hash ''"),
        ("aes-ecb-plain64", "ecb"),
        ("cast5-xts-plain64", "16 bytes"),
        ("aes-xts-plain64-essiv", "plain64-essiv"),
    ],
)
def test_what_is_unknown_is_refused_by_name(text: str, named: str) -> None:
    """The message says the whole specification, and which part of it is not implemented."""
    with pytest.raises(UnsupportedFeature) as caught:
        CipherSpec.parse(text)
    assert text.strip() in str(caught.value)
    assert named in str(caught.value)


@given(
    st.text(max_size=60)
    | st.lists(st.sampled_from(["aes", "-", ":", "xts", "cbc", "essiv", "\0", "null"])).map("".join)
)
def test_no_text_does_anything_but_parse_or_be_refused(text: str) -> None:
    """Any text is a specification or UnsupportedFeature."""
    try:
        spec = CipherSpec.parse(text)
    except UnsupportedFeature:
        return
    assert CipherSpec.parse(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("aes-xts-plain64", {256, 384, 512}),
        ("aes-cbc-plain64", {128, 192, 256}),
        ("aes-ecb", {128, 192, 256}),
        ("serpent-xts-plain64", {256, 384, 512}),
        ("twofish-xts-plain64", {256, 512}),
        ("twofish-cbc-plain64", {128, 256}),
        ("camellia-cbc-plain64", {128, 192, 256}),
        ("cast5-cbc-plain64", {128}),
    ],
)
def test_key_sizes(text: str, bits: set[int]) -> None:
    """XTS takes two keys of the block cipher, every other mode takes one; no other size is accepted."""
    spec = CipherSpec.parse(text)

    assert {size * 8 for size in spec.key_sizes} == bits
    for size in range(130):
        if size * 8 in bits:
            spec.check_key_size(size)
        else:
            with pytest.raises(UnsupportedFeature, match=f"not {size * 8}"):
                spec.check_key_size(size)


@given(st.integers())
def test_sector_sizes(size: int) -> None:
    """Only 512, 1024, 2048 and 4096 bytes are sector sizes."""
    if size in SECTOR_SIZES:
        check_sector_size(size)
    else:
        with pytest.raises(HeaderError, match=str(size)):
            check_sector_size(size)


def test_every_refusal_has_the_exit_code_of_a_wrong_header() -> None:
    """A cipher that is not implemented ends the program as a wrong header does."""
    with pytest.raises(LukshdrfsError) as caught:
        CipherSpec.parse("rot13")
    assert caught.value.exit_code == 4
