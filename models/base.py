"""A base model as the loop sees it: text, noise, velocity, images, at one size and guidance.

A new base model is one file beside flux.py and sd3.py, a subclass of Model, and its name in
`families`; `load` takes the one that is for the class which the pipeline's own folder names.

    model = load("assets/tiny-flux", size=32)             # or "black-forest-labs/FLUX.1-dev"
    text = model.encode(["a red circle inside a blue square"], group_size=8)
    clean = sampler.ode_sample(model.velocity(text), model.noise(range(8)), sigmas)
    model.decode(clean)[0].save("circle.png")
"""

import common.environment  # noqa: F401, before torch

# isort: split
import contextlib
import copy
import math
import re
from pathlib import Path

import diffusers
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from torch.nn.functional import pixel_shuffle, pixel_unshuffle
from transformers.utils import logging as transformers_logging

DECODED_AT_ONCE = 64  # latents through the VAE
# Of bases that were distilled to draw in few steps, where no configuration says so.
DISTILLED = re.compile(r"schnell|turbo|lightning|hyper-?sd|lcm|distill|[248]-?steps?\b", re.I)


def check_finite(tensors) -> None:
    """Raises FloatingPointError with its name for the first of (name, tensor) pairs that holds NaN
    or infinity; of a sharded tensor this rank's part is looked at."""
    for name, tensor in tensors:
        tensor = (tensor.to_local() if hasattr(tensor, "to_local") else tensor).detach()
        if tensor.is_floating_point() and tensor.numel():
            ends = torch.stack(torch.aminmax(tensor))  # both are NaN where anything is; no copy
            if not torch.isfinite(ends).all():
                raise FloatingPointError(f"NaN or infinity in {name}")


# ----------------------------------------------------------------------------- loading


def is_hub_name(name: str) -> bool:
    """Whether a name is written as OWNER/NAME, and not as the path of a folder."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~", "assets", "runs"))


# The error, or one that it came from, by the name of its class -> what to do about it.
HUB = {
    "GatedRepoError": "it is gated: accept its licence on its page, then `hf auth login`",
    "RepositoryNotFoundError": "the hub knows no such model, or it is private: `hf auth login`",
    "OfflineModeIsEnabled": "HF_HUB_OFFLINE is set, and it is not in the cache",
    "ConnectionError": "the hub cannot be reached, and it is not in the cache",
    "ConnectError": "the hub cannot be reached, and it is not in the cache",
    "TimeoutException": "the hub does not answer, and it is not in the cache",
    "LocalEntryNotFoundError": "the hub cannot be reached, and it is not in the cache",
}


@contextlib.contextmanager
def loading(model: str):
    """What the hub, diffusers and safetensors raise in many ways, as a ValueError of a sentence."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, SafetensorError) as error:
        chain, cause = [], error
        while cause:
            chain += [kind.__name__ for kind in type(cause).__mro__]
            cause = cause.__cause__ or cause.__context__
        lines = [*filter(str.strip, str(error).splitlines()), type(error).__name__]
        first = " ".join(map(str.strip, lines[: 1 + lines[0].rstrip().endswith(":")]))
        reason = next((HUB[name] for name in HUB if name in chain), first[:300])
        raise ValueError(f"cannot load '{model}': {reason}") from None


def load_index(model: str) -> dict:
    """The class ("_class_name") and the parts of the pipeline in `model`, a folder or hub name.
    Raises ValueError if there is none."""
    folder = Path(model)
    if (folder.exists() or not is_hub_name(model)) and not (folder / "model_index.json").is_file():
        hint = ""
        if any(folder.glob("*.safetensors")):
            hint = "; this may be a LoRA: give it as --lora, and its base as --model"
        raise ValueError(
            f"no pipeline in '{model}': expected a folder with model_index.json, or a hub name "
            f"such as black-forest-labs/FLUX.1-dev{hint}"
        )
    with loading(model):
        return diffusers.DiffusionPipeline.load_config(model)


def check_weights(pipe, model: str) -> None:
    """Raises ValueError if a network of the pipeline holds weights that are not finite."""
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            try:
                check_finite(part.state_dict().items())
            except FloatingPointError as error:
                raise ValueError(
                    f"'{model}' cannot be used: {error} of its {name}; the files are damaged, or "
                    "the run that made them diverged"
                ) from None


def families() -> dict:
    """The subclasses of Model by the name of the pipeline's class that each is for."""
    from models.flux import Flux
    from models.klein import Klein
    from models.sd3 import SD3

    return {family.pipeline.__name__: family for family in (Flux, Klein, SD3)}


def load(
    model: str, size: int | None = None, guidance: float = 3.5, device="cpu", dtype=torch.float32
) -> "Model":
    """The base model in a folder or at a hub name, frozen and in eval mode.

    size: of images, pixels; None: what the pipeline was made for. Raises ValueError.
    """
    index, known = load_index(model), families()
    found = index["_class_name"]
    if found not in known:
        raise ValueError(f"'{model}' is a {found}: the loop knows {', '.join(known)}")
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    # diffusers has to be given a part that is missing, even where the index says so
    missing = {name: None for name, kind in index.items() if kind == [None, None]}
    with loading(model):
        pipe = known[found].pipeline.from_pretrained(model, dtype=dtype, **missing)
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
    check_weights(pipe, model)
    return known[found](pipe.to(device), size, guidance)


# ----------------------------------------------------------------------------- the model


def rows_of(text, index):
    """Of a Text the prompts of the given rows; repeat a row to give each image of a group its
    prompt."""
    return type(text)(*(field[index] for field in text))


class Model:
    """A pipeline of diffusers at one size and one guidance. A subclass has:

    pipeline, Text       its class in diffusers; a NamedTuple of tensors, one row per prompt, with
                         `rows = rows_of`
    encode_prompts       P prompts -> Text
    predict              one pass of the network: velocity
    patch                a token is a patch of so many latents squared; 2 if it does not say
    lora_blocks, lora_layers   where a LoRA goes: how names of layers begin and end, if otherwise
    schedule_shift, for_vae    where its scheduler or its VAE is of another kind
    copies               2 where guidance is a second pass, of the empty prompt, in the same batch
    """

    pipeline: type
    Text: type
    patch = 2
    copies = 1
    lora_blocks: tuple[str, ...] = ("transformer_blocks.",)
    # Attention and feed-forward of a block, as diffusers names them in most transformers.
    lora_layers: tuple[str, ...] = (
        *(".to_q", ".to_k", ".to_v", ".to_out.0"),
        *(".add_q_proj", ".add_k_proj", ".add_v_proj", ".to_add_out"),
        *(".net.0.proj", ".net.2"),
    )

    def __init__(self, pipe, size: int | None = None, guidance: float = 3.5):
        self.pipe, self.guidance = pipe, guidance
        self.size = size or pipe.vae.config.sample_size
        self.policy = pipe.transformer  # as the update calls it; of several ranks, their average
        self.frozen = None  # the base: a copy of the transformer; None where a LoRA is switched off
        self.text_of = torch.no_grad()(self.encode_prompts)  # a text cache takes its place
        self.before_pass = lambda: None  # called before each pass: where a run may end

    def encode_prompts(self, prompts: list[str]):
        raise NotImplementedError

    def predict(self, network, text, latents: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """text (B rows), latents (B, N, C), sigma (B,) -> velocity (B, N, C) float32."""
        raise NotImplementedError

    @property
    def transformer(self) -> torch.nn.Module:
        return self.pipe.transformer

    @property
    def distilled(self) -> bool:
        """Whether the base draws in few steps by distillation, by its configuration or its name."""
        said = self.pipe.config.get("is_distilled")
        return bool(DISTILLED.search(Path(self.pipe.name_or_path).name) if said is None else said)

    def resized(self, size: int) -> "Model":
        """The same model, weights and text cache, for images of another size."""
        other = copy.copy(self)
        other.size = size
        return other

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Latents (channels, rows, columns) of an image, before they are packed into tokens.

        Raises ValueError if the size does not divide into patches.
        """
        scale = self.pipe.vae_scale_factor
        if self.size % (self.patch * scale):
            raise ValueError(
                f"image size {self.size}x{self.size} is not a multiple of {self.patch * scale} "
                "pixels"
            )
        return self.pipe.vae.config.latent_channels, self.size // scale, self.size // scale

    @property
    def tokens(self) -> int:
        """N, the latent tokens of an image: of so many the network attends over."""
        _, rows, columns = self.latent_shape
        return rows * columns // self.patch**2

    def schedule_shift(self, num_steps: int) -> float:
        """The shift that the pipeline itself would use at this size in so many steps."""
        config = self.pipe.scheduler.config
        if not config.use_dynamic_shifting:
            return config.shift
        lengths = config.base_image_seq_len, config.max_image_seq_len
        return math.exp(calculate_shift(self.tokens, *lengths, config.base_shift, config.max_shift))

    # ---- a rollout

    def encode(self, prompts: list[str], group_size: int = 1):
        """What the network sees of P prompts, one row for each of P * group_size images."""
        rows = torch.arange(len(prompts)).repeat_interleave(group_size)
        return self.text_of(prompts).rows(rows)

    def pack(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, C, H, W) -> tokens (B, H/patch * W/patch, C * patch²).

        Contiguous: else sums would round differently on stored tokens than on fresh ones, and
        replay's ratio would not be exactly 1.
        """
        return pixel_unshuffle(latents, self.patch).flatten(2).transpose(1, 2).contiguous()

    def unpack(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (B, N, C * patch²) -> latents (B, C, H, W): undoes pack."""
        _, rows, columns = self.latent_shape
        grid = tokens.transpose(1, 2).unflatten(2, (rows // self.patch, columns // self.patch))
        return pixel_shuffle(grid, self.patch)

    def noise(self, seeds) -> torch.Tensor:
        """Gaussian noise (B, N, C) float32, one seed per image: the same whatever the batch.

        Drawn on the CPU, so that a seed means the same noise on every device.
        """
        noise = [self.noise_of(torch.Generator().manual_seed(seed)) for seed in seeds]
        return self.pack(torch.stack(noise)).to(self.pipe.vae.device)  # encoders may be elsewhere

    def noise_of(self, generator: torch.Generator) -> torch.Tensor:
        """Noise of one image (C, H, W), drawn in the order in which the pipeline draws it."""
        return torch.randn(self.latent_shape, generator=generator)

    def velocity(self, text, transformer: torch.nn.Module | None = None):
        """(latents (B, N, C), sigma (B,)) -> velocity (B, N, C) float32, for B rows of text.

        transformer: what to call instead of the pipeline's own, e.g. the base or a DDP wrapper.
        """
        network = transformer or self.transformer

        def one_pass(latents: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            self.before_pass()
            return self.predict(network, text, latents, sigma)

        return one_pass

    def guide(self, velocities: torch.Tensor) -> torch.Tensor:
        """Classifier-free guidance: velocities (2B, ...) of the empty prompt, then of the prompts,
        -> (B, ...)."""
        negative, positive = velocities.chunk(2)
        return negative + self.guidance * (positive - negative)

    def for_vae(self, tokens: torch.Tensor) -> torch.Tensor:
        """Clean latents (B, N, C) as the VAE decodes them: unpacked, in its own units."""
        config = self.pipe.vae.config
        return self.unpack(tokens).contiguous() / config.scaling_factor + config.shift_factor

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> list:
        """Clean latents (B, N, C) -> B RGB images.

        Raises FloatingPointError for images that are not finite, which would be black.
        """
        vae, images = self.pipe.vae, []
        for chunk in latents.split(DECODED_AT_ONCE):
            pixels = vae.decode(self.for_vae(chunk).to(vae.dtype), return_dict=False)[0]
            check_finite([("the decoded images", pixels)])
            images += self.pipe.image_processor.postprocess(pixels.float(), output_type="pil")
        return images

    # ---- what is trained of it

    def trainable(self) -> list[torch.nn.Parameter]:
        return [p for p in self.transformer.parameters() if p.requires_grad]

    @contextlib.contextmanager
    def base(self):
        """Yields the transformer of the base model, the KL reference: the copy, or the LoRA off.

        Raises ValueError if there is neither: the "base" would be the policy.
        """
        if self.frozen is not None:
            yield self.frozen
            return
        if not getattr(self.transformer, "peft_config", None):
            raise ValueError(
                "no frozen copy and no adapter to switch off: there is no base to compare with"
            )
        self.transformer.disable_adapters()
        try:
            yield self.transformer
        finally:
            self.transformer.enable_adapters()

    def add_lora(self, rank: int, alpha: int = 0) -> None:
        """Adds a trainable float32 LoRA to the transformer's blocks, through peft.

        alpha: its changes count alpha / rank; 0: as the rank. Raises ValueError for a rank above
        the layers' width, and for a network without any such layer.
        """
        from peft import LoraConfig

        layers = {
            name: layer
            for name, layer in self.transformer.named_modules()
            if name.startswith(self.lora_blocks)
            and name.endswith(self.lora_layers)
            and isinstance(layer, torch.nn.Linear)
        }
        if not layers:
            raise ValueError(
                f"--lora_rank {rank}: no layer of this {type(self.transformer).__name__} has a "
                f"name that ends in {', '.join(self.lora_layers)}; train all weights instead"
            )
        width = min(min(layer.in_features, layer.out_features) for layer in layers.values())
        if rank > width:
            raise ValueError(
                f"--lora_rank {rank} is above the width of the layers, {width}: a LoRA of that "
                "rank already holds every change of them"
            )
        how = dict(lora_alpha=alpha or rank, init_lora_weights="gaussian")
        self.transformer.add_adapter(LoraConfig(r=rank, target_modules=list(layers), **how))
        for parameter in self.trainable():
            parameter.data = parameter.data.float()

    def save(self, folder: str | Path, weights: dict[str, torch.Tensor] | None = None) -> None:
        """What plain diffusers loads: a whole pipeline, or a LoRA file for `load_lora_weights`.

        weights: the transformer's state dict, gathered, where the module itself holds but a shard;
        it is written in the precision of the rest of the pipeline.
        """
        pipe, network = self.pipe, self.transformer
        if getattr(network, "peft_config", None):
            from peft import get_peft_model_state_dict

            # with its alpha, as diffusers' training scripts keep it: else it comes back as the rank
            pipe.save_lora_weights(
                folder,
                transformer_lora_layers=get_peft_model_state_dict(network),
                transformer_lora_adapter_metadata=network.peft_config["default"].to_dict(),
            )
            return
        if weights:
            with torch.device("meta"):
                # by name: fully_shard renames the class of the module itself
                kind = getattr(diffusers, pipe.config["transformer"][1])
                whole = kind.from_config(network.config)
            weights = {name: weight.to(pipe.vae.dtype) for name, weight in weights.items()}
            whole.load_state_dict(weights, assign=True)
            pipe = type(pipe)(**(pipe.components | {"transformer": whole}))
        pipe.save_pretrained(folder)
