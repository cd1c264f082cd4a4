"""`python -m octavo`: the `octavo` command where it is not on the path."""

import sys

from octavo.cli import main

sys.exit(main())
