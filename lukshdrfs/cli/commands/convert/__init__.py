"""`lukshdrfs encrypt`, `decrypt` and `reencrypt`: the data that are there, converted in place."""
