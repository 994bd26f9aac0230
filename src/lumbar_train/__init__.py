"""Cohort to weights: tables, folds, cache, the training loop, out-of-fold gathering, evaluation and its report."""
