"""What a run folder holds of each stage: out-of-fold outputs and kept fits."""
