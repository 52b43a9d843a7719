"""Is it really gone? Attacks on erased models, probes for what is left of a concept, and how their numbers are told."""
