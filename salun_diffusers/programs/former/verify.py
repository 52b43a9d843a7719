"""`python -m salun_diffusers.verify`, as version 0.1 had it; `salun verify` is the same."""

import sys

from salun_diffusers.programs.verify import main

if __name__ != "__main__":
    raise ImportError("salun_diffusers.verify is a program's former name; docs/architecture.md lists the modules.")
sys.exit(main())
