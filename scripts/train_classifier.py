"""Train a starting classifier; `accelerate launch scripts/train_classifier.py --help` lists the flags."""

import sys

from salun_diffusers.classification.train import main

if __name__ == "__main__":
    sys.exit(main())
