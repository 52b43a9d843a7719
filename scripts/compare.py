"""`salun compare` from a clone; `python scripts/compare.py --help` lists the flags."""

import sys

from salun_diffusers.programs.compare import main

if __name__ == "__main__":
    sys.exit(main())
