"""The images of a series to stacks: their geometry, which of them belong together, their order, and their pixels."""
