"""Unlearning for image classifiers: any method under any mask, and the papers' measures."""
