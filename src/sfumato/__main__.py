"""`python -m sfumato` is the command line."""

from .cli import main

main()
