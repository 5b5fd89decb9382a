"""Command lines run in this process, as a user has them."""

import torch

from rsdmri import cli


def run_command(application, *arguments):
    """The exit code of one command line, in single precision whatever the tests' default is."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        return cli.run(application, [str(a) for a in arguments])
    finally:
        torch.set_default_dtype(before)
