"""The fast lane: requests of the image served by C threads, beside libfuse."""
