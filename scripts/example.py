"""Research scripts: python scripts/example.py SCAN.h5 RUN  (RUN: such as runs/mri-demo/distill)."""

import sys

import torch

import rsdmri.mri

scan = rsdmri.mri.read(sys.argv[1])
maps, eigenvalues, valid = rsdmri.mri.espirit(scan.kspace, mask=scan.mask)
x = rsdmri.mri.combine(maps, rsdmri.mri.ifft2c(scan.kspace))  # (slices, 1, H, W) complex
everything = torch.ones(len(x), 1, 1, x.shape[-1], dtype=torch.bool)
y = rsdmri.mri.MultiCoilMRI(maps, everything).forward(x)
print(f"{scan.name}: {int(valid.sum())} slices with signal, residual {(y - scan.kspace).norm() / scan.kspace.norm():.3f}")

images = rsdmri.load(sys.argv[2]).sample(range(16))
print(f"16 generated images {tuple(images.shape)}, largest magnitude {images.abs().max():.2f}")
