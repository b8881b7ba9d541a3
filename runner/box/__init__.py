"""Runs on the rented box with nothing but the standard library: the supervisor and the guard."""
