"""`make tensorboard`: opens TensorBoard on a run of any store."""
