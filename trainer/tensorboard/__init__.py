"""`make tensorboard`: opens TensorBoard on a run of any store, and follows the run while it goes on."""
