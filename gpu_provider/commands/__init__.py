"""What is typed at a prompt: ``gpu-provider`` and its commands."""
