"""Training on Kaggle alone: code as a private dataset, one notebook a session, and the run folder back home."""
