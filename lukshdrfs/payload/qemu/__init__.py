"""Payloads in image formats, by QEMU's block layer, which can open nothing but the image."""
