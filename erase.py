"""Erase a concept from a diffusion pipeline; `accelerate launch erase.py --help` lists the flags."""

import sys

from salun_diffusers.programs.erase import main

if __name__ == "__main__":
    sys.exit(main())
