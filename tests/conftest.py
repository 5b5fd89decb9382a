"""Strict numerics: float64 unless a test says otherwise; the same weights in every run of a test."""

import os
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def numerics():
    """Networks draw their first weights from the global generator: seeded, or a test fails on one day in fifty."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def real_data():
    """The folder of real scans for development."""
    folder = os.environ.get("RSDMRI_DATA")
    if not folder:
        pytest.skip("RSDMRI_DATA is not set: it names the folder of real scans for development")
    return Path(folder)
