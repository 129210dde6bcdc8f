"""What a change of keyslots costs, said in words where somebody may not expect it."""

from __future__ import annotations

import logging

from lukshdrfs.luks.edit import HeaderEdit
from lukshdrfs.luks.luks2.tokens import orphan_tokens
from lukshdrfs.luks.model import Header

log = logging.getLogger(__name__)


def warn_of_overwriting(edit: HeaderEdit, header: Header, keyslot: int) -> None:
    """Say what a crash in the next moment would cost, if it would cost anything."""
    if not edit.in_place:
        return
    others = [str(slot.id) for slot in header.keyslots if slot.id != keyslot]
    rest = f"keyslots {', '.join(others)} are not touched" if others else "there is no other: the volume would be lost"
    log.warning(
        "there is no room for a second area: keyslot %d is overwritten in its place. If the power fails in this "
        "moment, it opens with neither passphrase; %s. 'lukshdrfs header backup' keeps what is there",
        keyslot,
        rest,
    )


def warn_of_orphans(before: Header, after: Header) -> None:
    """Name the tokens that have lost their last keyslot by a change."""
    known = {token.id for token in orphan_tokens(before)}
    for token in orphan_tokens(after):
        if token.id not in known:
            log.warning(
                "token %d (%s) is bound to no keyslot any more, and opens nothing; 'cryptsetup token remove "
                "--token-id %d' removes it",
                token.id,
                token.type,
                token.id,
            )
