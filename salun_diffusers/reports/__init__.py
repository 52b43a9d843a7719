"""A number with its interval, a verdict, a page."""
