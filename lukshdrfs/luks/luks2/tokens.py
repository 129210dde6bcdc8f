"""Tokens: how other programs get at keyslots' passphrases."""

from __future__ import annotations

from lukshdrfs.luks.luks2.shared import PASSPHRASE_TOKEN, PAYLOAD_TOKEN
from lukshdrfs.luks.model import Header, Token


def orphan_tokens(header: Header) -> tuple[Token, ...]:
    """
    Return the tokens that are bound to no keyslot, so that what they lead to opens nothing.

    Our own ones are not among them: they describe a shared header, and lead to nothing.
    """
    return tuple(
        token for token in header.tokens if not token.keyslots and token.type not in (PAYLOAD_TOKEN, PASSPHRASE_TOKEN)
    )
