"""A LUKS2 reencryption on disk, as values: what state it is in, what vouches for it, how its steps are written."""
