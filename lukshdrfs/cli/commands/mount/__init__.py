"""`lukshdrfs mount`."""
