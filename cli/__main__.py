"""``python -m hashstream.cli``."""

from hashstream.cli.main import main

main()
