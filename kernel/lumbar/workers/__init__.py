"""Who predicts which study when: worker processes, the pool and the schedule over them, and their time limits."""
