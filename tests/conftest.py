"""What all tests share. Tests marked ``gpu`` need a GPU; everything else runs on two CPU cores."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips the GPU tests where there is no GPU."""
    if not any(item.get_closest_marker("gpu") for item in items):
        return
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(scope="session")
def processor():
    """A Qwen2.5-VL processor with a small byte-level tokenizer; a 112 x 112 image gives 16 tokens."""
    from toolkits.data.demo_model import DemoShape, build_processor, build_tokenizer

    shape = DemoShape(image_side=112)
    tokenizer = build_tokenizer(["what colour is it? red", "user assistant system"] * 50, shape.vocab_size)
    return build_processor(tokenizer, shape)


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    """A folder with a small model, 64 training rows and 101 test rows in the shape of Robo2VLM-1."""
    from tests.small_run import write_small_run

    return write_small_run(tmp_path_factory.mktemp("small"), test_rows=101)
