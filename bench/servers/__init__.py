"""TLS servers and relays: CPU time per connection, by size of the keys; latency; throughput."""
