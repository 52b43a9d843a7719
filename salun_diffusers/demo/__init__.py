"""The embedded default: a tiny but real Stable Diffusion pipeline, its renderer and its detector."""
