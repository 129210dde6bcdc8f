"""`lukshdrfs create`."""
