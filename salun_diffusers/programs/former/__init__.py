"""Names of version 0.1: `python -m salun_diffusers.erase` is `python -m salun_diffusers erase`."""
