"""The library's parts in the conventions of others: :mod:`l0sign_cuda.integrations.pyg`."""
