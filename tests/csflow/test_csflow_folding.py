"""The folded extractor has the features of the one that it was made of."""

import copy

import pytest
import torch
from torch import nn

from csflow.folding import fold
from csflow.model import EfficientNetB5, EfficientNetLite0, FeatureExtractor


@pytest.mark.parametrize("make", [EfficientNetLite0, EfficientNetB5])
def test_folding_changes_no_features(make):
    torch.manual_seed(0)
    plain = make().eval()
    for module in plain.modules():  # as after a training
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    folded, images = fold(copy.deepcopy(plain)), torch.randn(2, 3, 96, 160)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    with torch.no_grad():
        wanted, found = plain(images), folded(images.contiguous(memory_format=torch.channels_last))
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_the_checksum_is_of_the_weights_that_were_given():
    torch.manual_seed(0)
    one = EfficientNetLite0()
    two = copy.deepcopy(one)
    assert FeatureExtractor(one).checksum() == FeatureExtractor(two).checksum()
    two = copy.deepcopy(EfficientNetLite0())
    assert FeatureExtractor(two).checksum() != FeatureExtractor(one).checksum()
