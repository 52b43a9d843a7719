"""Families of denoisers: one file says how one kind is conditioned, noised and predicted."""
