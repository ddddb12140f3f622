"""``python -m colossus.cli``."""

from colossus.cli.main import main

if __name__ == "__main__":  # a sweep's processes import this anew
    main()
