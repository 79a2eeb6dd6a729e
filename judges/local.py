"""A transformers image-text-to-text model in this process.

LocalMLLM("Qwen/Qwen2.5-VL-7B-Instruct").ask([Query((first, second), "Which is better?")])
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from judges.mllm import Answer, Query, StreamingMLLM, cut_off
from support.rgb import to_rgb


def _load_processor(folder: str, config):
    """The model's processor, with or without torchvision."""
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
    from transformers.utils import is_torchvision_available

    if is_torchvision_available():
        return AutoProcessor.from_pretrained(folder)

    # Without torchvision, transformers cannot make the video processor that Qwen's processors
    # insist on. We show no videos: accept None in its place, and take images through PIL.
    class ImageProcessorOnly(PROCESSOR_MAPPING[type(config)]):
        def check_argument_for_proper_class(self, argument_name, argument):
            if argument is not None:
                return super().check_argument_for_proper_class(argument_name, argument)

    tokenizer = AutoTokenizer.from_pretrained(folder)
    images = AutoImageProcessor.from_pretrained(folder, backend="pil")
    return ImageProcessorOnly(images, tokenizer, None, chat_template=tokenizer.chat_template)


class LocalMLLM(StreamingMLLM):
    """A transformers image-text-to-text model in process: Qwen2.5-VL, Qwen3-VL and their kin.

    dtype: by default that of the weights on disk. device: by default CUDA where there is one.
    """

    def __init__(
        self,
        folder_or_name: str | Path,
        *,
        batch_size: int = 8,
        max_new_tokens: int = 1024,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str = "auto",
    ):
        from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig

        folder = str(folder_or_name)
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.batch_size, self.max_new_tokens = batch_size, max_new_tokens
        try:
            self.processor = _load_processor(folder, AutoConfig.from_pretrained(folder))
            self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype)
        except (OSError, ValueError, KeyError) as error:  # not there; not of the kind
            reason = str(error).strip().split("\n")[0]
            raise ValueError(f"cannot load a multimodal model from '{folder}': {reason}") from None
        self.name = f"{folder} ({self.model.dtype}, max_new_tokens {max_new_tokens})"
        # Padding on the left: generation goes on from the last position of every row.
        self.processor.tokenizer.padding_side = "left"
        added = self.processor.tokenizer.added_tokens_decoder.values()
        self._control = [str(token) for token in added if token.special and str(token)]
        self.model.to(self.device).eval()
        # Published generation configs sample and penalize repetition. Keep only where theirs ends,
        # so that the answer is the most probable token at each place and nothing else.
        eos, pad = self.model.generation_config.eos_token_id, self.processor.tokenizer.pad_token_id
        self._ends = torch.tensor(eos, device=self.device).flatten()
        self.model.generation_config = GenerationConfig(
            do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=eos, pad_token_id=pad
        )

    def inputs(self, queries: Sequence[Query], openings: Sequence[str] | None = None):
        """The queries as one batch of tensors, as the model takes them.

        openings: the first words of each answer, by default none.
        """
        texts = []
        for query, opening in zip(queries, openings or [""] * len(queries), strict=True):
            # A caption must neither open a turn nor announce an image, so control tokens are
            # removed. What stood on both sides of one may join to another: until none is left.
            text = query.text
            while any(token in text for token in self._control):
                for token in self._control:
                    text = text.replace(token, "")
            content = [{"type": "image"} for _ in query.images] + [{"type": "text", "text": text}]
            turn = [{"role": "user", "content": content}]
            text = self.processor.apply_chat_template(turn, add_generation_prompt=True)
            texts.append(text + opening)
        images = [to_rgb(image) for query in queries for image in query.images] or None
        batch = self.processor(text=texts, images=images, padding=True, return_tensors="pt")
        return batch.to(self.device)

    @torch.inference_mode()
    def as_answered(self, queries: Sequence[Query]) -> Iterator[tuple[int, Answer]]:
        for start in range(0, len(queries), self.batch_size):
            batch = queries[start : start + self.batch_size]
            inputs = self.inputs(batch)
            tokens = self.model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
            texts = self.processor.batch_decode(tokens, skip_special_tokens=True)
            ended = torch.isin(tokens, self._ends).any(1).tolist()
            for k, (text, whole) in enumerate(zip(texts, ended, strict=True), start):
                unfinished = None if whole else cut_off(self.max_new_tokens)
                if text.strip():
                    yield k, Answer(text, unfinished=unfinished)
                else:
                    empty = ": ".join(filter(None, ("empty answer", unfinished)))
                    yield k, Answer(error=empty, unfinished=empty)

    @torch.inference_mode()
    def first_probability(self, queries: Sequence[Query]) -> list[float | None]:
        """P("Image 1 is better"), of the two answers, when the model answers without reasoning.

        None where the model gives no finite probability.
        """
        openings = [f"<answer>Image {number} is better" for number in (1, 2)]
        probabilities = []
        size = max(1, self.batch_size // 2)  # each query takes two rows
        for start in range(0, len(queries), size):
            batch = queries[start : start + size]
            inputs = self.inputs([q for q in batch for _ in openings], openings * len(batch))
            ids = inputs["input_ids"]
            # A query's two texts are equally long and differ in the digit alone. The tokens before
            # it have the same probability in both, so only those from the digit on are summed.
            tail = ids.shape[1] - int((ids[0::2] != ids[1::2]).any(0).int().argmax())
            logits = self.model(**inputs, logits_to_keep=tail + 1).logits[:, :-1].float()
            log_prob = logits.log_softmax(-1).gather(2, ids[:, -tail:, None]).sum((1, 2))
            probabilities += log_prob.view(-1, 2).softmax(1)[:, 0].tolist()
        return [p if p == p else None for p in probabilities]  # NaN differs from itself
