"""The record of claims and originals, and its form."""
