"""`salun evaluate fid` from a clone; `python scripts/evaluate_fid.py --help` lists the flags."""

import sys

from salun_diffusers.programs.evaluate_fid import main

if __name__ == "__main__":
    sys.exit(main())
