"""The TLS terminator: ``gpu-provider terminator``.

Each process has one event loop. With ``--workers`` there are several, which a
:class:`~gpu_provider.tls.terminator.master.Master` starts and replaces. Each connection is a
:class:`~gpu_provider.tls.terminator.session.Session`. A :class:`~gpu_provider.tls.terminator.poller.Poller` watches its
sockets, edge-triggered, and the loop's notifier resumes its paused handshake when the batch that holds its RSA
operation is done.
"""
