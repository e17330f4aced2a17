"""`python -m plait` is `plait`."""

from plait.cli import main

main()
