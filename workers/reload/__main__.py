"""`python -m workers.reload`."""

import sys

from workers.reload.command import main

if __name__ == "__main__":
    sys.exit(main())
