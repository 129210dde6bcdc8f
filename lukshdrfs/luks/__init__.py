"""The on-disk formats as values: parse, check, unlock, make. Parsing takes bytes and opens nothing."""
