"""Pretraining of a small multilingual BERT that replaces the paper's M-BERT.

The BERT has one WordPiece vocabulary for all languages and embeddings from masked language modeling
on their texts. It is small enough for a laptop and needs no model hub. With access to a hub,
settings can name `bert-base-multilingual-cased` instead.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tokenizers import BertWordPieceTokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy

from mla_ray.runtime.atomic import replacing_folder

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WIDTH, LAYERS, HEADS, LONGEST = 256, 2, 4, 32
MASKED = 0.15
NOT_ASKED = -100


def pretrain(
    texts: Sequence[str],
    folder: Path,
    *,
    vocab_size: int = 24_000,
    steps: int = 1_000,
    batch: int = 128,
    lr: float = 1e-3,
    seed: int = 0,
    progress: Callable[[int], None] = lambda steps: None,
) -> None:
    """Pretrain a BERT on `texts` and write it to `folder` in the format of transformers.

    The masked language modeling follows BERT: 15 % of the tokens are predicted. Of these, 80 % are
    masked, 10 % are replaced by another token and 10 % stay (Devlin et al. 2019, section 3.1).
    """
    from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

    # Accents distinguish words, such as Czech "byt" and "být".
    tokenizer = BertWordPieceTokenizer(lowercase=True, strip_accents=False)
    tokenizer.train_from_iterator(
        texts, vocab_size=vocab_size, min_frequency=2, special_tokens=list(SPECIAL),
        show_progress=False,
    )  # fmt: skip
    tokenizer.enable_truncation(LONGEST)
    ids = [torch.tensor(e.ids) for e in tokenizer.encode_batch(list(texts))]
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    size = tokenizer.get_vocab_size()
    config = BertConfig(
        vocab_size=size,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=2 * WIDTH,
        max_position_embeddings=LONGEST,
    )
    model = BertForMaskedLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(len(ids), (batch,), generator=generator).tolist()
        ids_BL = torch.nn.utils.rnn.pad_sequence([ids[row] for row in rows], batch_first=True)
        masked_BL, wanted_BL = mask(ids_BL, tokenizer.token_to_id("[MASK]"), size, generator)
        hidden_BLW = model.bert(
            input_ids=masked_BL, attention_mask=(ids_BL != 0).long()
        ).last_hidden_state
        asked_BL = wanted_BL != NOT_ASKED  # the head is expensive, so only these tokens get it
        loss = cross_entropy(model.cls(hidden_BLW[asked_BL]), wanted_BL[asked_BL])
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        progress(1)
    tokenizer.no_truncation()
    with replacing_folder(folder) as scratch:
        model.bert.save_pretrained(scratch)
        tokenizer.save(str(scratch / "tokenizer.json"))
        BertTokenizerFast(tokenizer_file=str(scratch / "tokenizer.json")).save_pretrained(scratch)


def mask(
    ids_BL: Tensor, mask_id: int, vocabulary: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mask some token ids for masked language modeling.

    Args:
        ids_BL: Token ids, `[B, L]` int64.
        mask_id: Id of the mask token.
        vocabulary: Size of the vocabulary.
        generator: Source of randomness.

    Returns:
        The masked ids and the targets, both `[B, L]`. A target is the original id, or `NOT_ASKED`
        if the token is not predicted. At least one token is predicted.

    """
    draw_BL = torch.rand(ids_BL.shape, generator=generator)
    asked_BL = (draw_BL < MASKED) & (ids_BL >= len(SPECIAL))
    if not asked_BL.any():  # the loss over no tokens is NaN
        asked_BL[0, 1] = True
    how_BL = torch.rand(ids_BL.shape, generator=generator)
    other_BL = torch.randint(len(SPECIAL), vocabulary, ids_BL.shape, generator=generator)
    masked_BL = torch.where(asked_BL & (how_BL < 0.8), mask_id, ids_BL)
    masked_BL = torch.where(asked_BL & (how_BL >= 0.9), other_BL, masked_BL)
    return masked_BL, torch.where(asked_BL, ids_BL, NOT_ASKED)
