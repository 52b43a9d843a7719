"""`python -m salun_diffusers.erase`, as version 0.1 had it; `salun erase` is the same."""

import sys

from salun_diffusers.programs.erase import main

if __name__ != "__main__":
    raise ImportError("salun_diffusers.erase is a function: from salun_diffusers import erase")
sys.exit(main())
