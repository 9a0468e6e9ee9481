"""Networks and losses of MemAE, under the names of the original."""

from memae.models.ae_3dconv import AutoEncoderCov3D
from memae.models.entropy_loss import EntropyLoss, EntropyLossEncap
from memae.models.memae_3dconv import AutoEncoderCov3DMem
from memae.models.memory_module import MemModule, MemoryUnit

__all__ = ["AutoEncoderCov3D", "AutoEncoderCov3DMem", "EntropyLoss", "EntropyLossEncap", "MemModule", "MemoryUnit"]
