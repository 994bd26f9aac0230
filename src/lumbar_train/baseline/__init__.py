"""The FastAI baseline done right: one network a label column over whole 8-bit slices, scored without a leak."""
