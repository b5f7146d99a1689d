"""``python -m curvcli``."""

import sys

if sys.path and not sys.flags.safe_path:
    # The working directory comes last: a rich.py in it is not taken for the library.
    sys.path.append(sys.path.pop(0))

from curvcli.cli.main import main

if __name__ == "__main__":
    main()
