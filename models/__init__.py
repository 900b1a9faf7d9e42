"""The networks: ResNet-26, and any residual network with a kept and a fine-tuned copy of each block."""
