"""The stages from a study to probabilities: localise, crop, classify, aggregate. ``lumbar.chains.main`` joins them."""
