"""The command that says what is on one image: `make predict IMAGE=path`."""
