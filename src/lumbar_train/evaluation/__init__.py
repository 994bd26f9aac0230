"""What a run's answers are worth: scores, errors of points, and their pictures."""
