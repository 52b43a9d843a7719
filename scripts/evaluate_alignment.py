"""`salun evaluate alignment` from a clone; `python scripts/evaluate_alignment.py --help` lists the flags."""

import sys

from salun_diffusers.programs.evaluate_alignment import main

if __name__ == "__main__":
    sys.exit(main())
