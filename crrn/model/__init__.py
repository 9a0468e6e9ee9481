"""The network of CRRN: ConvRRN.py builds it from SpatialAttention.py and the cells in core_module/."""
