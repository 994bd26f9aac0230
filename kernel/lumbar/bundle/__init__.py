"""A sealed bundle: what belongs to it, whether it is whole and ours, and the networks that it holds."""
