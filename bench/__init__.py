"""Measurements of this program beside those it replaces: `make bench`."""
