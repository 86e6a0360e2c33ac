"""Anything to JSON: objects, streams of rows, and what is compressed on the way out."""
