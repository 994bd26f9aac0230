"""Chains: the functions that lead one study from its folder to probabilities and pictures."""
