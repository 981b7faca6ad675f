"""Forward operators ``B`` of the data term: what a camera, a scanner or a mask
does to an image."""
