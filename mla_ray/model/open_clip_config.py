"""Types and defaults of open_clip's `open_clip_config.json`."""

from typing import Any

from open_clip.transform import PreprocessCfg, merge_preprocess_dict

ModelConfig = dict[str, Any]
"""`model_cfg`: arguments of `open_clip.CLIP` or `open_clip.CustomTextCLIP`, or a part such as
`text_cfg`.
"""
Preprocessing = dict[str, Any]
"""`preprocess_cfg`: how an image is prepared for the image tower."""


def preprocessing(changes: Preprocessing) -> Preprocessing:
    """Return OpenAI's preprocessing, which is open_clip's default, with the given changes."""
    merged: Preprocessing = merge_preprocess_dict(PreprocessCfg(), changes)
    return merged
