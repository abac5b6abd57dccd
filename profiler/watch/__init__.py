"""Loops that somebody else wrote, watched through their SDK clients and tools without changing them."""
