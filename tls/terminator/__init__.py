"""The TLS terminator: ``gpu-provider terminator``.

One process, one event loop. Each connection is a :class:`~gpu_provider.tls.terminator.session.Session`; its sockets
are watched by a :class:`~gpu_provider.tls.terminator.poller.Poller`, edge-triggered, and its paused handshake is
resumed by the loop's notifier when the batch that holds its RSA operation is done.
"""
