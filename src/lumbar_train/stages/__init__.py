"""The stages: what each one's networks are fitted on, and how its outputs are made."""
