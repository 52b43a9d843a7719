"""`salun evaluate nudity` from a clone; `python scripts/evaluate_nudity.py --help` lists the flags."""

import sys

from salun_diffusers.programs.evaluate_nudity import main

if __name__ == "__main__":
    sys.exit(main())
