"""`python -m rankwright.cli` is the command `rankwright`."""

from rankwright.cli import main

main()
