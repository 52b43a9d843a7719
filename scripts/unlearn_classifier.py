"""`salun unlearn-classifier` from a clone; `accelerate launch scripts/unlearn_classifier.py --help` lists the flags."""

import sys

from salun_diffusers.programs.unlearn_classifier import main

if __name__ == "__main__":
    sys.exit(main())
