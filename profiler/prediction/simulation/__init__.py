"""Loops run again in virtual time."""
