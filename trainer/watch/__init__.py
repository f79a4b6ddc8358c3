"""A live page of a run on this machine."""
