"""Photographs as an application of the engine ``rsdmri``: the mirror of ``rsdmri.mri``."""
