"""Whether our trainer ends where torchvision's and timm's loops end: same images, same settings, many seeds."""
