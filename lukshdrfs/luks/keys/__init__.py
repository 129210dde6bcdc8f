"""From a secret to the volume key, and back into a keyslot: hashes, key derivation, key material."""
