"""Reading pictures, and where training images come from."""
