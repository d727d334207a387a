"""Checkpoints on a GPU: copies on the host, and a run that goes on with the same bits."""

from __future__ import annotations

import pytest
import yaml

pytestmark = pytest.mark.gpu


def test_copies_are_exact_page_locked_and_overwritten():
    import torch

    from rlinf_vlm.distributed.host_copy import HostCopy

    tensors = {
        "a": torch.randn(1000, 3, device="cuda"),
        "b": torch.randn(7, device="cuda").bfloat16(),
        "step": torch.tensor(5.0, device="cuda"),
        "host": torch.arange(3),
        "empty": torch.empty(0, 4, device="cuda"),
    }
    copy = HostCopy()
    staged = copy.stage(tensors)
    expected = {name: tensor.cpu().clone() for name, tensor in tensors.items()}
    tensors["a"].zero_()
    assert all(torch.equal(staged[name], expected[name]) for name in tensors)
    assert staged["a"].is_pinned()
    address = staged["a"].data_ptr()
    again = copy.stage(tensors)
    assert again["a"].data_ptr() == address and not again["a"].any(), "the buffer is kept"
    copy.close()


@pytest.mark.parametrize(
    "changes", [{}, {"is_lora": True, "lora_dropout": 0.2}], ids=["whole model", "LoRA with dropout"]
)
def test_the_losses_are_those_of_a_run_that_was_never_stopped(small_run, tmp_path, changes):
    """On all GPUs, bf16, variable-length attention, only kernels that repeat."""
    from tests.e2e.test_resume import losses
    from tests.e2e.test_sft import run
    from tests.small_run import tree

    settings = {
        "runner__max_steps": 4,
        "runner__save_interval": 2,
        "actor__deterministic": True,
        "actor__fsdp_config__mixed_precision__param_dtype": "bf16",
        **{f"actor__model__{name}": value for name, value in changes.items()},
    }
    config = tmp_path / "gpu.yaml"
    config.write_text(yaml.safe_dump(tree(small_run, **settings)))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    status, output = run(config, whole, f"runner.logger.log_path={whole}")
    assert status == 0, output
    status, output = run(config, parts, f"runner.logger.log_path={parts}", "runner.max_steps=2")
    assert status == 0, output
    status, output = run(config, parts, f"runner.logger.log_path={parts}", "runner.resume_dir=auto")
    assert status == 0, output
    assert losses(parts) == losses(whole) and len(losses(whole)) == 4
