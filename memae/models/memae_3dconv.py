"""The memory-augmented autoencoder (MemAE)."""

from torch import Tensor, nn

from memae.models.ae_3dconv import make_decoder, make_encoder
from memae.models.memory_module import MemModule


class AutoEncoderCov3DMem(nn.Module):
    """Encoder, memory, decoder (paper, figure 2)."""

    def __init__(
        self,
        chnum_in: int,
        mem_dim: int,
        shrink_thres: float = 0.0025,
        backbone: str = "conv3d",
        depth: int | None = None,
    ):
        """chnum_in: channels of the frames; mem_dim: items of the memory; shrink_thres: lambda of equation 6, 0 for
        none; backbone, depth: see `make_encoder`."""
        super().__init__()
        self.encoder, channels = make_encoder(chnum_in, backbone, depth)
        self.mem_rep = MemModule(mem_dim=mem_dim, fea_dim=channels, shrink_thres=shrink_thres)
        self.decoder = make_decoder(chnum_in, channels)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """x (B, C, 16, H, W) in [-1, 1] -> "output" (B, C, 16, H, W) and "att" (B, mem_dim, 2, H / s, W / s).

        s and what H and W must be multiples of: 16 (conv3d) or 32.
        """
        z = self.encoder(x)
        found = self.mem_rep(z)
        return {"output": self.decoder(found["output"]), "att": found["att"]}
