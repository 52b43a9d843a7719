"""`salun evaluate objects` from a clone; `python scripts/evaluate_objects.py --help` lists the flags."""

import sys

from salun_diffusers.programs.evaluate_objects import main

if __name__ == "__main__":
    sys.exit(main())
