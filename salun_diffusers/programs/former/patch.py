"""`python -m salun_diffusers.patch`, as version 0.1 had it; `salun patch` is the same."""

import sys

from salun_diffusers.programs.patch import main

if __name__ != "__main__":
    raise ImportError("salun_diffusers.patch is a program's former name; docs/architecture.md lists the modules.")
sys.exit(main())
