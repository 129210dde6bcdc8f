"""The LUKS1 header."""
