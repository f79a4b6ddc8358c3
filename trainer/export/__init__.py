"""The command that writes weights in the forms that others load: `make export RUN=digits`.

`forms` says which forms there are and writes them; a release uses it, too.
"""
