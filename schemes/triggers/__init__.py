"""What trigger schemes share: images, labels, forging, training."""
