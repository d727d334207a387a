"""torch.distributed: process groups, FSDP2, saving. Knows no data, no Ray."""
