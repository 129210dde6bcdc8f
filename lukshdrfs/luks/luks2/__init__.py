"""The LUKS2 header."""
