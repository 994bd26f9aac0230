"""Localise, crop, classify, aggregate: lumbar spine MR studies to graded probabilities, offline.

Research use only. This package is all that ships to Kaggle; it imports nothing else of ours.
"""

__version__ = "0.1.0"
