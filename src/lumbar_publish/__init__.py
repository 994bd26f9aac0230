"""Weights to Kaggle: sealing, the notebook, the rehearsal at home and the client."""
