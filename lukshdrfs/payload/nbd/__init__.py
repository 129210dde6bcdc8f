"""Payloads that an NBD server has."""
