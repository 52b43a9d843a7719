"""A page to look at an erasure: base and erased pictures side by side at one seed, at any strength."""
