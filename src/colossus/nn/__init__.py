"""Neural networks in plain JAX: one decoder family over dict pytrees, and how it is cut over a mesh of devices."""
