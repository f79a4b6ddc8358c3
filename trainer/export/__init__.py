"""The command that writes weights in the forms that others load: `make export RUN=digits`."""
