"""Published pointwise scorers: what Pref-GRPO is held against, and what it can be mixed with.

A scorer has a name and `score(prompts, images)`: one number for each (prompt, image) alone, higher
is better, its scale its own. rewards.PointwiseReward turns it into a reward.

  clip       logit scale x cosine of CLIP's two embeddings (100 x cosine for OpenAI's weights, which
             are ours; the released recipe's are apple/DFN5B-CLIP-ViT-H-14-378, a pickle without an
             image processor: convert it, give it one, and name the folder, clip=FOLDER)
  pickscore  the same, of a CLIP ViT-H/14 that was tuned to choices of people (Pick-a-Pic); the
             model card names another repository's processor
  hpsv2      the cosine of a CLIP ViT-H/14 that was tuned to rankings of people. The authors'
             pickled open_clip checkpoint does not load cleanly; ours is a third party's conversion,
             with safetensors only as the hub's automatic one. The least certain of the four
  aesthetic  LAION's predictor, 1 to 10: linear layers on CLIP ViT-L/14's image embedding; ignores
             the prompt. Of the authors' pickle a third party has made one safetensors file
  redness    how red the image is: no published scorer but a demonstration (docs/runs.md), a crude
             bias with a smooth score, which training satisfies at the cost of the prompt

MLLMScorer asks a vision-language model for UnifiedReward's three ratings instead. Safetensors only:
`safetensors.torch.save_file(torch.load(path, weights_only=True), "model.safetensors")` converts a
pickle. None of the published weights were at hand here: tests run the real classes at small size.

    scores = load("pickscore", device="cuda", dtype=torch.float16).score(["a red circle"], [image])
"""

import common.environment  # noqa: F401, before torch

# isort: split
import logging
from collections.abc import Sequence

import numpy as np
import torch
from safetensors import safe_open
from torch.nn.functional import normalize
from transformers import CLIPModel, CLIPProcessor, CLIPVisionModelWithProjection
from transformers.utils import cached_file

from common.rgb import to_rgb
from judges.answers import Outcome, read_rating
from judges.mllm import MLLM, Query
from judges.templates import POINTWISE_TEMPLATE

log = logging.getLogger(__name__)

# name -> where its weights are, where its processor is (None: in the same place)
PUBLISHED = {
    "clip": ("openai/clip-vit-large-patch14", None),
    "pickscore": ("yuvalkirstain/PickScore_v1", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"),
    "hpsv2": ("adams-story/HPSv2-hf", "openai/clip-vit-base-patch32"),
    "aesthetic": ("shunk031/aesthetics-predictor-v2-sac-logos-ava1-l14-linearMSE", None),
    "redness": ("", None),  # has no weights
}


def split_source(text: str) -> tuple[str, str] | None:
    """Name and source of a scorer from "NAME[=SOURCE]", or None where it is none. source: folder or
    hub name of its weights; empty: the published ones."""
    name, equals, source = text.partition("=")
    return (name, source) if name in PUBLISHED and bool(equals) == bool(source) else None


def parse_scorers(text: str, flag: str = "--scorers") -> dict[str, str]:
    """The sources of "NAME[=SOURCE],...", by name, in their order.

    flag: what errors call the text. Raises ValueError for a part that is none.
    """
    sources = {}
    for item in map(str.strip, text.split(",")):
        name, source = split_source(item) or ("", "")
        if not name or name in sources:
            raise ValueError(
                f"{flag}: '{item}' in '{text}' is no NAME[=SOURCE]: NAME one of "
                f"{', '.join(PUBLISHED)}, each once; =SOURCE the folder or hub name of its weights"
            )
        sources[name] = source
    return sources


def load(name: str, weights: str = "", device="cpu", dtype=torch.float32):
    """The scorer of that name, from its published weights or from a folder or hub name of the kind.

    weights: a CLIPModel with its processor in the same place; empty for the published ones.
    Raises ValueError for an unknown name, and for weights that are not there or of another kind.
    """
    if name not in PUBLISHED:
        raise ValueError(f"unknown scorer '{name}': choose from {', '.join(PUBLISHED)}")
    if name == "redness":
        if weights:
            raise ValueError(f"redness has no weights: give it without '={weights}'")
        return Redness()
    model, processor = (weights, None) if weights else PUBLISHED[name]
    if name == "aesthetic":
        return AestheticScorer(model, device, dtype)
    return CLIPScorer(model, processor, 1.0 if name == "hpsv2" else None, device, dtype, name=name)


def _loaded(what: str, name: str, function, *args, **settings):
    """function(name, ...), its many errors as one ValueError."""
    try:
        return function(name, *args, **settings)
    except (OSError, ValueError, RuntimeError) as error:  # not there; not of the kind; other shapes
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"cannot load {what} from '{name}': give a folder or hub name with "
            f"safetensors weights and a processor ({reason})"
        ) from None


def _rgb(images: Sequence, count: int, name: str) -> list:
    if len(images) != count:
        got = f"got {count} prompts, {len(images)} images"
        raise ValueError(f"{name} needs one image per prompt, {got}")
    return [to_rgb(image) for image in images]


class CLIPScorer:
    """scale x cosine of the embeddings of prompt and image: CLIP score, PickScore, HPSv2."""

    kind = CLIPModel

    def __init__(
        self,
        model: str,
        processor: str | None = None,
        scale: float | None = None,
        device="cpu",
        dtype=torch.float32,
        batch_size: int = 32,
        name: str = "clip",
    ):
        """model, processor: folders or hub names; scale: what multiplies, None for the model's own.

        Raises ValueError if there is no such model, or not all of its weights.
        """
        self.batch_size, self.name, self.scale = batch_size, name, scale
        settings = dict(dtype=dtype, use_safetensors=True, output_loading_info=True)
        network, info = _loaded("a CLIP model", model, self.kind.from_pretrained, **settings)
        if missing := sorted(info["missing_keys"]):  # which transformers fills with random numbers
            lacks = f"it lacks {len(missing)} weights, such as {missing[0]}"
            raise ValueError(f"cannot load a CLIP model from '{model}': {lacks}")
        self.model = network.requires_grad_(False).eval().to(device)
        where = processor or model
        self.processor = _loaded("a CLIP processor", where, CLIPProcessor.from_pretrained)

    @torch.no_grad()
    def score(self, prompts: Sequence[str], images: Sequence) -> list[float]:
        """One score for each (prompt, PIL image), in order; the group it stands in changes nothing.

        A prompt longer than the text tower (77 tokens in the published ones) is cut.
        """
        images, scores = _rgb(images, len(prompts), self.name), []
        for start in range(0, len(images), self.batch_size):
            rows = slice(start, start + self.batch_size)
            embeds = self.embed_images(images[rows])
            scores += self.values(embeds, list(prompts[rows])).tolist()
        return scores

    def values(self, embeds: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        """(n,): the scores of images by their embeddings (n, D)."""
        scale = self.model.logit_scale.float().exp() if self.scale is None else self.scale
        return scale * (embeds * self.embed_texts(prompts)).sum(-1)

    def embed_images(self, images: list) -> torch.Tensor:
        """(n, D) float32, of length one."""
        pixels = self.processor.image_processor(images=images, return_tensors="pt").pixel_values
        return normalize(self.features(pixels.to(self.model.device, self.model.dtype)).float())

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model.get_image_features(pixels).pooler_output

    def embed_texts(self, texts: list[str]) -> torch.Tensor:
        """(n, D) float32, of length one."""
        tokens = self.processor.tokenizer(
            texts,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
            max_length=self.model.config.text_config.max_position_embeddings,
        ).to(self.model.device)
        features = self.model.get_text_features(tokens.input_ids, tokens.attention_mask)
        return normalize(features.pooler_output.float())


class AestheticScorer(CLIPScorer):
    """LAION's aesthetic predictor: linear layers on the normalized image embedding of a CLIP tower.

    model: folder or hub name whose model.safetensors has the tower and the head `layers.*`, between
        which there is no activation. Raises ValueError if either is missing.
    """

    kind = CLIPVisionModelWithProjection

    def __init__(self, model: str, device="cpu", dtype=torch.float32, batch_size: int = 32):
        with safe_open(_loaded("a head", model, cached_file, "model.safetensors"), "pt") as file:
            keys = [key for key in file.keys() if key.startswith("layers.")]  # noqa: SIM118
            head = {key: file.get_tensor(key).float().to(device) for key in keys}
        layers = sorted({int(key.split(".")[1]) for key in head})
        if not layers:
            raise ValueError(
                f"no aesthetic head in '{model}': expected tensors layers.* beside the tower"
            )
        weights = [head[f"layers.{k}.{part}"] for k in layers for part in ("weight", "bias")]
        self.head = torch.nn.ParameterList(weights).requires_grad_(False)
        super().__init__(model, device=device, dtype=dtype, batch_size=batch_size, name="aesthetic")

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model(pixels).image_embeds

    def values(self, embeds: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        for weight, bias in zip(self.head[::2], self.head[1::2]):
            embeds = embeds @ weight.T + bias
        return embeds.squeeze(-1)


class Redness:
    """Mean over pixels of red less the mean of green and blue, -255 to 255."""

    name = "redness"

    def score(self, prompts: Sequence[str], images: Sequence) -> list[float]:
        pixels = [np.asarray(image, float) for image in _rgb(images, len(prompts), self.name)]
        return [float((p[..., 0] - p[..., 1:].mean(-1)).mean()) for p in pixels]


class MLLMScorer:
    """Mean of alignment, coherence and style, 1 to 5 each: UnifiedReward's pointwise form.

    template: text of the question; {prompt} in it is replaced and nothing else interpreted.
    Raises ValueError if the template lacks {prompt}.
    """

    def __init__(self, mllm: MLLM, template: str = POINTWISE_TEMPLATE):
        if "{prompt}" not in template:
            raise ValueError("the template of the pointwise judge lacks {prompt}")
        self.mllm, self.name, self.template = mllm, mllm.name, template

    def rate(self, prompts: Sequence[str], images: Sequence) -> list[tuple[Query, Outcome]]:
        """Each question with what was answered, in order; points are the mean rating, or None."""
        queries = [
            Query((image,), self.template.replace("{prompt}", prompt))
            for prompt, image in zip(prompts, images, strict=True)
        ]
        rated = list(map(read_rating, queries, self.mllm.ask(queries)))
        if errors := [outcome.error for outcome in rated if outcome.points is None]:
            log.warning("%s: %d scores lost, last error: %s", self.name, len(errors), errors[-1])
        return list(zip(queries, rated))

    def score(self, prompts: Sequence[str], images: Sequence) -> list[float | None]:
        """One score for each (prompt, image), in order; None where the MLLM gave none."""
        return [outcome.points for _, outcome in self.rate(prompts, images)]
