"""`salun train-ddpm` from a clone; `accelerate launch scripts/train_ddpm.py --help` lists the flags."""

import sys

from salun_diffusers.programs.train_ddpm import main

if __name__ == "__main__":
    sys.exit(main())
