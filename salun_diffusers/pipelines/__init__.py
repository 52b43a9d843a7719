"""Pipelines that diffusers does not have; each file stands alone, so that a saved folder can carry it."""
