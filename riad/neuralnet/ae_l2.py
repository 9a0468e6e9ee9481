"""The seed's autoencoder without skip connections (--nn 1000)."""

from riad.neuralnet import aesc_l2


class NeuralNet(aesc_l2.NeuralNet):
    """As the U-Net, but the way up gets nothing from the way down."""

    skips = False
