"""Competitions, one module each: what is asked for, and the chain of those that have one of their own."""
