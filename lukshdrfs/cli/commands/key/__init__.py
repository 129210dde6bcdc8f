"""`lukshdrfs key`."""
