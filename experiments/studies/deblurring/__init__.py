"""A trained deblurring run beside what else could be done: nothing, the ridge
alone, Wiener, tuned TV, a denoiser's regularizer."""
