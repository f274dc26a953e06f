"""Prompt texts with versions and the parsers of what models write back."""
