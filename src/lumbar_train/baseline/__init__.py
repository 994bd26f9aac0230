"""The FastAI-style baseline: one network per label column on whole 8-bit slices, scored on studies it has not seen."""
