"""The real client, what it says, and each step of publishing with the evidence on which it ends."""
