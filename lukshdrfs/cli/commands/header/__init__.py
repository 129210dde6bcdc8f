"""`lukshdrfs header`."""
