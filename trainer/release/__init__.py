"""The command that makes a folder ready for the Hugging Face Hub: `make release RUN=digits`."""
