"""TLS servers and relays: CPU time per connection, latency, throughput; the module in other programs."""
