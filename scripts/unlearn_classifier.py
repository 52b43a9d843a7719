"""Make an image classifier forget; `accelerate launch scripts/unlearn_classifier.py --help` lists the flags."""

import sys

from salun_diffusers.classification.run import main

if __name__ == "__main__":
    sys.exit(main())
