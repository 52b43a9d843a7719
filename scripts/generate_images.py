"""`salun generate` from a clone; `python scripts/generate_images.py --help` lists the flags."""

import sys

from salun_diffusers.programs.generate import main

if __name__ == "__main__":
    sys.exit(main())
