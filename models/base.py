"""A base model as the loop sees it: text, noise, velocity, pictures, at one size and guidance.

Everything that belongs to one family of pipelines stands in a file of its own, flux.py or sd3.py:
functions of the same names, and PIPELINE, the class in diffusers that it is for. `load` looks at
the class that the pipeline's own folder names and takes the file that is for it: a new base model
is a new file in this folder, and nothing else changes.

    model = load("assets/tiny-flux", size=32)             # or "black-forest-labs/FLUX.1-dev"
    text = model.encode(["a red circle inside a blue square"], group_size=8)
    clean = sampler.ode_sample(model.velocity(text), model.noise(range(8)), sigmas)
    model.decode(clean)[0].save("circle.png")
"""

import contextlib
import importlib
from pathlib import Path

import torch
from safetensors import SafetensorError


def check_finite(tensors) -> None:
    """Raises FloatingPointError with the first one's name if a tensor holds NaN or infinity.

    tensors: (name, tensor) pairs; of a sharded tensor this rank's part is looked at.
    """
    for name, tensor in tensors:
        tensor = (tensor.to_local() if hasattr(tensor, "to_local") else tensor).detach()
        if tensor.is_floating_point() and tensor.numel():
            ends = torch.stack(torch.aminmax(tensor))  # both are NaN where anything is; no copy
            if not torch.isfinite(ends).all():
                raise FloatingPointError(f"NaN or infinity in {name}")


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
def told_in_one_sentence(model: str):
    """What loading a model can raise, in the hub's, diffusers' and safetensors' many ways, as one
    ValueError."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, SafetensorError) as error:
        chain, cause = [], error
        while cause:
            chain += [kind.__name__ for kind in type(cause).__mro__]
            cause = cause.__cause__ or cause.__context__
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        reason = next((HUB[name] for name in HUB if name in chain), first[:300])
        raise ValueError(f"cannot load '{model}': {reason}") from None


def kinds() -> dict:
    """The modules of this folder by the name of the pipeline's class that each is for."""
    names = [path.stem for path in sorted(Path(__file__).parent.glob("*.py"))]
    modules = [
        importlib.import_module(f"models.{n}") for n in names if n not in ("__init__", "base")
    ]
    return {module.PIPELINE.__name__: module for module in modules}


def pipeline_class(model: str) -> str:
    """The name of the class of the pipeline in `model`, a folder or hub name.

    Raises ValueError if there is none.
    """
    from diffusers import DiffusionPipeline

    folder = Path(model)
    looks_local = model.startswith((".", "/", "~", "assets", "runs")) or model.count("/") != 1
    if (folder.exists() or looks_local) and not (folder / "model_index.json").is_file():
        hint = ""
        if any(folder.glob("*.safetensors")):
            hint = "; this may be a LoRA: give it as --lora, and its base as --model"
        raise ValueError(
            f"no pipeline in '{model}': expected a folder with model_index.json, or a hub name "
            f"such as black-forest-labs/FLUX.1-dev{hint}"
        )
    with told_in_one_sentence(model):
        return DiffusionPipeline.load_config(model)["_class_name"]


class Model:
    """A pipeline of diffusers with its family's functions, at one size and one guidance."""

    def __init__(self, pipe, kind, size: int, guidance: float = 3.5):
        """kind: the module of this folder that is for the pipeline's class."""
        self.pipe, self.kind, self.size, self.guidance = pipe, kind, size, guidance
        self.policy = pipe.transformer  # as the update calls it; of several ranks, their average
        self.frozen = None  # the base: a copy of the transformer; None where a LoRA is switched off
        self.text_of = lambda prompts: kind.encode(pipe, prompts)  # a text cache takes its place
        self.before_pass = lambda: None  # called before each pass: where a run may end

    @property
    def transformer(self) -> torch.nn.Module:
        return self.pipe.transformer

    def trainable(self) -> list[torch.nn.Parameter]:
        return self.kind.trainable(self.pipe)

    def encode(self, prompts: list[str], group_size: int = 1):
        """What the network sees of P prompts, one row for each of P * group_size images."""
        rows = torch.arange(len(prompts)).repeat_interleave(group_size)
        return self.text_of(prompts).rows(rows)

    def noise(self, seeds) -> torch.Tensor:
        """Gaussian noise (B, N, C) float32, one seed an image: the same in every batch."""
        return self.kind.initial_noise(self.pipe, self.size, self.size, list(seeds))

    def velocity(self, text, transformer: torch.nn.Module | None = None):
        """(latents (B, N, C), sigma (B,)) -> velocity (B, N, C) float32, for B rows of text.

        transformer: what to call instead of the pipeline's own, e.g. the base.
        """
        velocity = self.kind.velocity_fn(
            self.pipe, text, self.size, self.size, self.guidance, transformer
        )

        def one_pass(latents: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            self.before_pass()
            return velocity(latents, sigma)

        return one_pass

    def decode(self, latents: torch.Tensor) -> list:
        """Clean latents (B, N, C) -> B RGB images."""
        return self.kind.decode(self.pipe, latents, self.size, self.size)

    def base(self):
        """A context that yields the transformer of the base model: the copy, or the LoRA off."""
        return self.kind.base_weights(self.pipe, self.frozen)

    def save(self, folder, weights: dict | None = None) -> None:
        """What plain diffusers loads; weights: gathered ones, where the module holds a shard."""
        self.kind.save(self.pipe, folder, weights)


def load(model: str, size: int, guidance: float = 3.5, device="cpu", dtype=torch.float32) -> Model:
    """The base model in a folder or at a hub name, frozen and in eval mode. Raises ValueError."""
    found, known = pipeline_class(model), kinds()
    if found not in known:
        raise ValueError(f"'{model}' is a {found}: the loop knows {', '.join(known)}")
    kind = known[found]
    return Model(kind.load(model, device, dtype), kind, size, guidance)
