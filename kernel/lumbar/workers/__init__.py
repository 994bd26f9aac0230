"""Who predicts which study when: worker processes, the schedule over them, and the watchdog over both."""
