"""The networks: ResNet-26, and any residual network with each of its blocks kept and fine-tuned."""
