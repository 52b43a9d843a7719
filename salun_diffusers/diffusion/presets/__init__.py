"""Concepts known by name, with the numbers that go with them."""
