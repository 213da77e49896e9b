"""``python -m posereid`` is the ``posereid`` command."""

from posereid.cli import main

main()
