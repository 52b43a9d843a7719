"""`salun train-classifier` from a clone; `accelerate launch scripts/train_classifier.py --help` lists the flags."""

import sys

from salun_diffusers.programs.train_classifier import main

if __name__ == "__main__":
    sys.exit(main())
