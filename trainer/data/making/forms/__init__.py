"""The forms that a source of images comes in, opened: class names, and random access to the encoded images."""
