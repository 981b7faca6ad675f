"""What the commands are made of: options, images, degradations, run folders,
reports."""
