"""Families of denoisers: one file says how one kind is conditioned, noised and predicted."""

from salun_diffusers.diffusion.families.family import Conditions, Family, family_of, load_pipeline, rows

__all__ = ["Conditions", "Family", "family_of", "load_pipeline", "rows"]
