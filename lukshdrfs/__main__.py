"""`python -m lukshdrfs`."""

import sys

from lukshdrfs.cli import main

sys.exit(main())
