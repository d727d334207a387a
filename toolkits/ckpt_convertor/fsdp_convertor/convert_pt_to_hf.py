"""Makes a Hugging Face folder of a checkpoint: for transformers and vLLM, with the names of the base model's folder.

    bash toolkits/ckpt_convertor/fsdp_convertor/convert_pt_to_hf.sh [overrides]

        convertor.ckpt_path=.../global_step_100   also its dcp_checkpoint, its full_weights.pt, its lora_adapter
        convertor.save_path=...                   new folder
        model.model_path=...                      the folder that the training started from
        (all fields: config/fsdp_model_convertor.yaml)

Dataflow: YAML and overrides -> ``Settings`` -> ``conversion.convert``: the base's headers give names, shapes and
layouts (naming.py), each checkpoint tensor gets its place (matching.py), tensors are read, cast and written one after
the other (tensors.py, output.py), the result is loaded and its logits are compared (verify.py). LoRA adapters are added
to the base weights on their way (adapter.py).

Invariants: every tensor of the checkpoint is used exactly once and every tensor of the base's folder is written exactly
once, or nothing is; memory is bounded by the largest tensor until the verification loads the result; the folder appears
under its name only when it is whole and verified.

Does not: convert checkpoints of Megatron, quantize, or change a tokenizer.
Exit status: 0 done, 1 the verification or a disk failed, 2 a mistake in settings or inputs, 130 Ctrl-C, 143 SIGTERM.
"""

from __future__ import annotations

import argparse
import errno
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: on the path is this file's folder instead of the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[3])

from examples.train_vlm import DISK_TROUBLE, Terminated, compose_config
from rlinf_vlm.config.load import load_block
from rlinf_vlm.types import UserError
from toolkits.ckpt_convertor.fsdp_convertor.settings import Settings

CONFIGS = Path(__file__).resolve().parent / "config"


def main(arguments: Sequence[str]) -> int:
    """Runs one conversion; returns the exit status."""
    parser = argparse.ArgumentParser(description="Convert a checkpoint to a Hugging Face folder.")
    parser.add_argument("--config-path", default=str(CONFIGS), help="folder of the YAML file")
    parser.add_argument("--config-name", default="fsdp_model_convertor", help="name in that folder, or a YAML's path")
    parser.add_argument("overrides", nargs="*", help="key=value, as Hydra reads them")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _end_on_sigterm)
    try:
        settings = load_block(compose_config(options.config_path, options.config_name, options.overrides), Settings)
        return _convert(settings)
    except UserError as error:
        for line in str(error).splitlines():
            sys.stderr.write(f"error: {line}\n")
        return 2
    except OSError as error:
        if error.errno not in (*DISK_TROUBLE, errno.EFBIG, errno.EIO):
            raise
        sys.stderr.write(f"error: {error.filename or 'convertor.save_path'}: {error.strerror or error}\n")
        return 1
    except Terminated:
        sys.stderr.write("stopped by SIGTERM\n")
        return 143
    except KeyboardInterrupt:
        sys.stderr.write("stopped by Ctrl-C\n")
        return 130


def _convert(settings: Settings) -> int:
    # Late: a mistake in the settings does not wait for torch and transformers.
    from toolkits.ckpt_convertor.fsdp_convertor.conversion import convert
    from toolkits.ckpt_convertor.fsdp_convertor.report import table
    from toolkits.ckpt_convertor.fsdp_convertor.verify import VerificationFailed

    try:
        report = convert(settings, _tell)
    except VerificationFailed as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(table(report))
    return 0


def _end_on_sigterm(number: int, frame: object) -> None:
    raise Terminated


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
