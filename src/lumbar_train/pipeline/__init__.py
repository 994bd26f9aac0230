"""One run from its options to its end: what it was asked, what it is prepared from, its stages in their order."""
