"""Pictures, where they come from, and what they show."""
