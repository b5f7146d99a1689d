"""``python -m curvcli``."""

from curvcli.cli.main import main

if __name__ == "__main__":
    main()
