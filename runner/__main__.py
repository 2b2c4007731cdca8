"""`python -m runner` is `xrun`."""

from runner.cli import main

main()
