"""Erasing a concept from a diffusion pipeline."""
