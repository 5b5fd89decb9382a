"""Strict numerics: float64 unless a test says otherwise; real data are found through RSDMRI_DATA."""

import os
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def double_precision():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def real_data():
    folder = os.environ.get("RSDMRI_DATA")
    if not folder:
        pytest.skip("RSDMRI_DATA is not set: it names the folder of real scans for development")
    return Path(folder)
