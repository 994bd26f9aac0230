"""A run's weights and the kernel's code into one folder, with its notebook."""
