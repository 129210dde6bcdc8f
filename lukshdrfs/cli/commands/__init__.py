"""One module or one folder a command."""
