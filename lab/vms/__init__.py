"""The laboratory of virtual machines: Muster's package on machines of their own, which really lose their power."""
