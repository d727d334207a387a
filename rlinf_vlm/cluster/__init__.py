"""Where processes run (placement, pure) and running them (Ray cluster and worker groups)."""
