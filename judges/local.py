"""A transformers image-text-to-text model in this process.

LocalMLLM("Qwen/Qwen2.5-VL-7B-Instruct").ask([Query((first, second), "Which is better?")])
"""

import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch

from common.rgb import to_rgb
from judges.answers import open_thought
from judges.mllm import MLLM, Answer, Query, cut_off

log = logging.getLogger(__name__)


def _load_processor(folder: str):
    """The processor that is saved with the model. Its errors name a package that it needs."""
    from transformers import AutoConfig, AutoProcessor
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    try:
        return AutoProcessor.from_pretrained(folder)
    except (ImportError, ValueError) as error:
        if "torchvision" not in str(error).lower():
            raise
        kind = PROCESSOR_MAPPING[type(AutoConfig.from_pretrained(folder))]
        if "video_processor" not in kind.get_attributes():
            raise

    # Most of what needs torchvision is a video processor. We show no videos: go without it.
    class ImagesOnly(kind):
        @classmethod
        def get_attributes(cls):
            return [name for name in kind.get_attributes() if name != "video_processor"]

        @classmethod
        def _get_arguments_from_pretrained(cls, *args, **settings):
            parts = super()._get_arguments_from_pretrained(*args, **settings)
            parts.insert(kind.get_attributes().index("video_processor"), None)
            return parts

    return ImagesOnly.from_pretrained(folder)


class LocalMLLM(MLLM):
    """A transformers image-text-to-text model in process, of any kind that has a chat template.

    dtype: by default that of the weights on disk. device: by default CUDA where there is one.
    Where the chat template opens a thought it is closed: answers come without thinking.
    Raises ValueError for a model that is not there, not of the kind, or without such a template,
    and where a package is missing that its processor needs.
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
        from safetensors import SafetensorError
        from transformers import AutoModelForImageTextToText, GenerationConfig

        folder = str(folder_or_name)
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.batch_size, self.max_new_tokens = batch_size, max_new_tokens
        try:
            self.processor = _load_processor(folder)
            self._closing = self._check_template()
            self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype)
        # Not there; not of the kind; a package that is missing or broken; weights that are
        except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split())
            package = "torchvision" if "torchvision" in reason.lower() else "a package"
            if isinstance(error, ImportError) or package == "torchvision":
                reason = f"its processor needs {package}, which is not installed: {reason}"
            what = f"a vision-language model from '{folder}'"
            raise ValueError(f"cannot load {what}: {reason[:300]}") from None
        self.name = f"{folder} ({self.model.dtype}, max_new_tokens {max_new_tokens})"
        tokenizer = self.processor.tokenizer
        # Padding on the left: generation goes on from the last position of every row.
        tokenizer.padding_side = "left"
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        special = [str(t) for t in tokenizer.added_tokens_decoder.values() if t.special]
        special += [getattr(self.processor, f"{kind}_token", None) for kind in ("image", "video")]
        self._control = [token for token in special if token]
        self.model.to(self.device).eval()
        # Published generation configs sample and penalize repetition. Keep only where theirs ends,
        # so that the answer is the most probable token at each place and nothing else.
        eos = self.model.generation_config.eos_token_id
        eos = tokenizer.eos_token_id if eos is None else eos
        self._ends = torch.tensor(eos, device=self.device).flatten()
        self.model.generation_config = GenerationConfig(
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=eos,
            pad_token_id=tokenizer.pad_token_id,
        )

    def _check_template(self) -> str:
        """What closes the thought that the chat template opens; "" if it opens none.

        Raises ValueError if there is no template, or none that takes images.
        """
        from jinja2 import TemplateError

        if not hasattr(self.processor, "tokenizer"):
            raise ValueError("it has no processor of images and text")
        self.processor.chat_template = (
            self.processor.chat_template or self.processor.tokenizer.chat_template
        )
        if not self.processor.chat_template:
            raise ValueError("it has no chat template, so no question can be put to it")
        self._settings, self._closing = {}, ""
        try:
            if open_thought(self._prompt("", 1)):
                self._settings = {"enable_thinking": False}  # as templates have it that can do both
            prompt, without = self._prompt("", 1), self._prompt("", 0)
        except (TemplateError, TypeError) as error:
            raise ValueError(f"its chat template takes no images: {error}") from None
        if prompt == without:
            raise ValueError("its chat template takes no images")
        closing = open_thought(prompt)
        if closing or self._settings:
            log.warning("the judge's chat template opens a thought, which is closed: no thinking")
        return f"{closing}\n\n" if closing else ""

    def _prompt(self, text: str, images: int) -> str:
        """The question as the model's chat template puts it, up to where the answer begins."""
        content = [{"type": "image"}] * images + [{"type": "text", "text": text}]
        turn = [{"role": "user", "content": content}]
        return (
            self.processor.apply_chat_template(turn, add_generation_prompt=True, **self._settings)
            + self._closing
        )

    def inputs(self, queries: Sequence[Query], openings: Sequence[str] | None = None):
        """Queries with equally many images as one batch of tensors, as the model takes them.

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
            texts.append(self._prompt(text, len(query.images)) + opening)
        images = [[to_rgb(image) for image in query.images] for query in queries]
        bos = self.processor.tokenizer.bos_token  # which the template, or else the tokenizer, adds
        batch = self.processor(
            text=texts,
            images=images if any(images) else None,
            padding=True,
            return_tensors="pt",
            add_special_tokens=not (bos and texts[0].startswith(bos)),
        )
        return batch.to(self.device)

    def _batches(self, queries: Sequence[Query], size: int) -> list[list[int]]:
        """Indices of queries with equally many images, `size` at a time."""
        alike = defaultdict(list)
        for k, query in enumerate(queries):
            alike[len(query.images)].append(k)
        return [ks[i : i + size] for ks in alike.values() for i in range(0, len(ks), size)]

    @torch.inference_mode()
    def ask(self, queries: Sequence[Query]) -> list[Answer]:
        answers = [Answer()] * len(queries)
        for batch in self._batches(queries, self.batch_size):
            inputs = self.inputs([queries[k] for k in batch])
            tokens = self.model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
            texts = self.processor.batch_decode(tokens, skip_special_tokens=True)
            ends = torch.isin(tokens, self._ends)
            shown = inputs["attention_mask"].sum(1).tolist()
            written = (ends.cumsum(1) - ends.int() == 0).sum(1).tolist()  # to the first end
            how = zip(texts, ends.any(1).tolist(), shown, written)
            for k, (text, whole, *usage) in zip(batch, how, strict=True):
                unfinished = None if whole else cut_off(self.max_new_tokens)
                answers[k] = Answer(text, unfinished=unfinished, usage=tuple(usage))
                if not text.strip():
                    empty = f"empty answer: {unfinished}" if unfinished else "empty answer"
                    answers[k] = Answer(error=empty, unfinished=empty, usage=tuple(usage))
        return answers

    @torch.inference_mode()
    def first_probability(self, queries: Sequence[Query]) -> list[float | None]:
        """P("Image 1 is better"), of the two answers, when the model answers without reasoning."""
        openings = [f"<answer>Image {number} is better" for number in (1, 2)]
        probabilities: list[float | None] = [None] * len(queries)
        for batch in self._batches(queries, max(1, self.batch_size // 2)):  # two rows a query
            rows = [queries[k] for k in batch for _ in openings]
            inputs = self.inputs(rows, openings * len(batch))
            ids = inputs["input_ids"]
            # A query's two texts are equally long and differ in the digit alone. The tokens before
            # it have the same probability in both, so only those from the digit on are summed.
            tail = ids.shape[1] - int((ids[0::2] != ids[1::2]).any(0).int().argmax())
            logits = self.model(**inputs, logits_to_keep=tail + 1).logits[:, :-1].float()
            log_prob = logits.log_softmax(-1).gather(2, ids[:, -tail:, None]).sum((1, 2))
            for k, p in zip(batch, log_prob.view(-1, 2).softmax(1)[:, 0].tolist(), strict=True):
                probabilities[k] = p if p == p else None  # NaN differs from itself
        return probabilities
