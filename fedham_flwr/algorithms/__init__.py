"""The mathematics of the methods, one file each: tensors in, tensors out."""
