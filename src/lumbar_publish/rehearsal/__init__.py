"""The notebook, run here as Kaggle would run it."""
