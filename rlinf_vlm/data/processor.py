"""The model folder's processor (tokenizer, image processor, chat template), with the run's pixel bounds."""

from __future__ import annotations

from typing import Any

from transformers import AutoProcessor

from rlinf_vlm.types import UserError


def load_processor(
    model_path: str, *, min_pixels: int | None = None, max_pixels: int | None = None, trust_remote_code: bool = False
) -> Any:
    """The processor saved in ``model_path``, which resizes images to an area between the bounds (None: its own).

    Raises UserError when there is no processor, when bounds contradict its own, or when it has none to set.
    """
    try:
        processor = AutoProcessor.from_pretrained(model_path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"actor.model.model_path={model_path!r}: its processor cannot be loaded ({reason}); copy the model's "
            "tokenizer and preprocessor files into the folder again"
        ) from error
    if not hasattr(processor, "tokenizer") or not hasattr(processor, "image_processor"):
        raise UserError(
            f"actor.model.model_path={model_path!r}: {type(processor).__name__} does not process images and text; "
            "copy the model's preprocessor_config.json and tokenizer files into the folder"
        )
    _check_tokenizer(model_path, processor)
    if min_pixels is not None or max_pixels is not None:
        _set_pixel_bounds(processor.image_processor, min_pixels, max_pixels)
    return processor


def _check_tokenizer(model_path: str, processor: Any) -> None:
    """An incomplete folder gives transformers an empty tokenizer, without an error."""
    tokenizer = processor.tokenizer
    token = getattr(processor, "image_token", None)
    if len(tokenizer) == 0 or token is None or tokenizer.convert_tokens_to_ids(token) in (None, tokenizer.unk_token_id):
        raise UserError(
            f"actor.model.model_path={model_path!r}: the tokenizer has {len(tokenizer)} tokens and does not know the "
            f"processor's image token {token!r}; copy the model's tokenizer files into the folder again"
        )


def _set_pixel_bounds(image_processor: Any, min_pixels: int | None, max_pixels: int | None) -> None:
    """Qwen-VL's image processors call the two areas shortest_edge and longest_edge."""
    size = dict(image_processor.size)
    if not hasattr(image_processor, "merge_size") or "shortest_edge" not in size or "longest_edge" not in size:
        raise UserError(
            f"data.min_pixels={min_pixels}, data.max_pixels={max_pixels}: {type(image_processor).__name__} has no such "
            "bounds; set both to null"
        )
    low = min_pixels if min_pixels is not None else size["shortest_edge"]
    high = max_pixels if max_pixels is not None else size["longest_edge"]
    if low > high:
        raise UserError(
            f"data.min_pixels={low} is larger than data.max_pixels={high} (null takes the model folder's own bound); "
            "set both so that min <= max"
        )
    image_processor.size = {**size, "shortest_edge": low, "longest_edge": high}
