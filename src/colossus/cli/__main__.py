"""``python -m colossus.cli``."""

from colossus.cli.main import main

main()
