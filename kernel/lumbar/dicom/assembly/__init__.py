"""Slices to stacks: each one's geometry, which belong together, and their order in space."""
