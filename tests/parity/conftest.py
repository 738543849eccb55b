"""A process group of one, for production code that sums counts over ranks whether or not there are any."""

import pytest
from _extras import require


@pytest.fixture(scope="module")
def process_group():
    """torch.distributed on the CPU, this process being the whole world; taken down after the module's tests."""
    dist = require("torch.distributed")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()
