"""The autoencoder: 3D convolutions (paper, section 4.2), or another video backbone as encoder (plans A, B and C)."""

from torch import Tensor, nn

from memae.models.backbones import make_backbone
from memae.models.convolutions import Conv3d, ConvTranspose3d

Stride = int | tuple[int, int, int]


def init_weights(module: nn.Module) -> None:
    """For `Module.apply`: convolutions N(0, 0.02), batch norms N(1, 0.02) and 0; convolutions' biases stay."""
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm3d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


def _stage(convolution: nn.Module) -> list[nn.Module]:
    return [convolution, nn.BatchNorm3d(convolution.out_channels), nn.LeakyReLU(0.2, inplace=True)]


def make_encoder(chnum_in: int, backbone: str, depth: int | None) -> tuple[nn.Module, int]:
    """Encoder (B, chnum_in, 16, H, W) -> (B, C, 2, H / s, W / s), and C. s is 16 for conv3d, else 32.

    backbone: conv3d, slowonly, csn or resnet3d; depth: of the latter three, None for their default.
    """
    if backbone != "conv3d":
        encoder = make_backbone(backbone, depth, chnum_in)
        return encoder, encoder.channels
    layers: list[nn.Module] = []
    for channels_in, channels, stride in ((chnum_in, 96, (1, 2, 2)), (96, 128, 2), (128, 256, 2), (256, 256, 2)):
        layers += _stage(Conv3d(channels_in, channels, 3, stride, padding=1))
    encoder = nn.Sequential(*layers)
    encoder.apply(init_weights)
    return encoder, 256


def make_decoder(chnum_in: int, code_channels: int) -> nn.Sequential:
    """Decoder for codes of 256 (conv3d), 512 (plans A and C) or 2048 channels (plan B, deep encoders)."""
    plan: list[tuple[int, Stride]] = {
        256: [(256, 2), (128, 2), (96, 2), (chnum_in, (1, 2, 2))],
        512: [(256, 2), (128, 2), (96, 2), (96, (1, 2, 2)), (chnum_in, (1, 2, 2))],
        2048: [(1024, 2), (512, 2), (256, 2), (128, (1, 2, 2)), (96, (1, 2, 2)), (chnum_in, 1)],
    }[code_channels]
    layers: list[nn.Module] = []
    channels_in = code_channels
    for channels, stride in plan:
        steps = (stride,) * 3 if isinstance(stride, int) else stride
        # an output padding of stride - 1 doubles the size exactly
        layers += _stage(
            ConvTranspose3d(channels_in, channels, 3, steps, padding=1, output_padding=[s - 1 for s in steps])
        )
        channels_in = channels
    decoder = nn.Sequential(*layers[:-2])  # the last layer is bare
    decoder.apply(init_weights)
    return decoder


class AutoEncoderCov3D(nn.Module):
    """The autoencoder without memory (AE)."""

    def __init__(self, chnum_in: int, backbone: str = "conv3d", depth: int | None = None):
        """chnum_in: channels of the frames; backbone, depth: see `make_encoder`."""
        super().__init__()
        self.encoder, channels = make_encoder(chnum_in, backbone, depth)
        self.decoder = make_decoder(chnum_in, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, 16, H, W) in [-1, 1], H and W multiples of 16 (conv3d) or 32 -> the same shape, unbounded."""
        return self.decoder(self.encoder(x))
