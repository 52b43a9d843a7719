"""Labelled pictures, and where they come from."""
