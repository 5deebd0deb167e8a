"""What Pliant's operators cost on this machine, against plain convolution and against their peers."""
