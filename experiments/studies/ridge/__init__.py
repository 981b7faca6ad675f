"""What the ridge of a deblurring run does: to the images without a regularizer
and with it, and to the bounds."""
