"""``gpu-provider service``: one process that computes for all programs on a host that load the provider module."""
