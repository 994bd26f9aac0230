"""Chains: the functions that take one study from its folder to probabilities and pictures."""
