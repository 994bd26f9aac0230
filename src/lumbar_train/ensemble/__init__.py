"""Several runs side by side: which is better, and which of their classifiers make one answer together."""
