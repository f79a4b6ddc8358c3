"""`make gpu-kit`: one folder with all that `make bench-gpu` needs on a GPU box without network. docs/gpu-box.md."""
