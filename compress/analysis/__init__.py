"""Analysis of data and runs: domain shift, FID, patch size, generator samples, segmentation examples."""
