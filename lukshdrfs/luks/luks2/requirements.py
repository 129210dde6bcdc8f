"""What LUKS2 metadata require of whoever uses them."""

from __future__ import annotations

import re

from lukshdrfs.luks.luks2 import strict_json as sj
from lukshdrfs.luks.luks2.strict_json import Json

ONLINE_REENCRYPT = ("online-reencrypt", "online-reencrypt-v2", "online-reencrypt-v3")


def requirements(metadata: Json) -> tuple[str, ...]:
    """Return what the volume's user must implement; metadata that do not ask for anything give `()`."""
    config = sj.get(metadata, "config", dict, "metadata")
    if "requirements" not in config:
        return ()
    return sj.get_strings(sj.get(config, "requirements", dict, "config"), "mandatory", "requirements", optional=True)


def is_reencrypt_candidate(requirement: str) -> bool:
    return requirement == "online-reencrypt" or bool(re.fullmatch(r"online-reencrypt-v[0-9]+", requirement))
