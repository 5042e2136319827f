"""open_clip's configurations, as its `open_clip_config.json` has them."""

from typing import Any

from open_clip.transform import PreprocessCfg, merge_preprocess_dict

ModelConfig = dict[str, Any]
"""`model_cfg`: what `open_clip.CLIP` and `open_clip.CustomTextCLIP` are made with, or a part of it,
such as `text_cfg`."""
Preprocessing = dict[str, Any]
"""`preprocess_cfg`: what is done to a picture before the image tower sees it."""


def preprocessing(changes: Preprocessing) -> Preprocessing:
    """OpenAI's, which is open_clip's default, but for the changes."""
    merged: Preprocessing = merge_preprocess_dict(PreprocessCfg(), changes)
    return merged
