"""The text of a domain XML: changed in places, the rest kept byte by byte."""
