"""Several machines, by engines that exist: Dask (``clusters.dask``) and Ray (``clusters.ray``)."""
