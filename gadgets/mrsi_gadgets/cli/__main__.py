"""``python -m mrsi_gadgets.cli``: the command ``mrsi`` where it is not on the path."""

import sys

from mrsi_gadgets.cli import main

if __name__ == "__main__":
    sys.exit(main())
