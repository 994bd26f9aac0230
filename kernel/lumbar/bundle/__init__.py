"""A sealed bundle: what it must hold, whether it is complete and unchanged, and the networks in it."""
