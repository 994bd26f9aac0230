"""One fit, whatever the stage: the loop, its checkpoints, its processes and devices."""
