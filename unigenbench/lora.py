"""A LoRA for a pipeline of diffusers, loaded whole or not at all.

diffusers only warns of weights that are for no layer or are not there, and draws all the same.

    load_lora(pipe, "runs/flux-lora/final", "the FluxPipeline in 'black-forest-labs/FLUX.1-dev'")
"""

import json
import logging
import re
import warnings
from dataclasses import fields
from pathlib import Path

from huggingface_hub import snapshot_download
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from safetensors import safe_open
from safetensors.torch import load_file

from models.base import is_hub_name, loading

PEFT = "base_model.model."  # before each key of a LoRA that PEFT saved
NAMED = re.compile(r"(\.lora_[AB])\.\w+(\.weight)$")  # with the adapter's name, as in a state_dict


def lora_file(name: str) -> tuple[Path | str, dict | None, bool]:
    """The file of a LoRA in a folder, a file or a hub name; PEFT's configuration of it; and whether
    it says which layers it was trained on.

    None: in the form of diffusers, or of those whose form it knows.
    """
    path, known = Path(name), ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
    if not path.exists():
        if not is_hub_name(name):
            raise ValueError("no such file or folder, and no hub name")
        path = Path(snapshot_download(name, allow_patterns=[*known, "adapter_config.json"]))
        if not any((path / file).is_file() for file in known):
            return name, None, False  # of another name there, which diffusers looks for
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        chosen = [path / file for file in known if (path / file).is_file()] or files
        if not chosen or len(chosen) > 1 and chosen == files:
            raise ValueError(
                f"{len(files)} files of safetensors there, none of them named {' or '.join(known)}"
            )
        path = chosen[0]
    config = path.with_name("adapter_config.json")
    with safe_open(path, "pt") as file:
        keys, header = file.keys(), file.metadata() or {}
    peft = any(key.startswith(PEFT) for key in keys)
    if peft and not config.is_file():
        raise ValueError("adapter_config.json is not beside it, which holds its rank and its alpha")
    if peft:
        return path, json.loads(config.read_text()), True
    return path, None, "lora_adapter_metadata" in header


def layer_of(key: str) -> str:
    """The name of the layer that a weight of a LoRA is for."""
    return re.split(r"\.lora[._]|\.alpha$", key)[0]


def check_weights(name: str, state: dict, pipe, where: str) -> None:
    """Raises ValueError unless each weight of a LoRA is for a layer of the transformer, as wide as
    that, and has its other half; those of text encoders are left to diffusers."""
    layers = {f"transformer.{k}": layer for k, layer in pipe.transformer.named_modules()}
    mine = {key for key in state if key.startswith("transformer.")}
    known = {key for key in state.keys() - mine if key.partition(".")[0] in pipe.components}
    known |= {key for key in mine if layer_of(key) in layers and not NAMED.search(key)}
    odd = [key for key in state if key not in known]
    if len(odd) == len(state):
        raise ValueError(f"nothing in '{name}' is for {where}")
    if odd:
        raise ValueError(f"{len(odd)} of {len(state)} weights, as {odd[0]}, are not for {where}")
    if broken := [key for key in state if not state[key].float().isfinite().all()]:
        raise ValueError(f"{len(broken)} of {len(state)} weights, as {broken[0]}, are not finite")
    for key in sorted(mine):
        for half, other, side, axis in (
            (".lora_A.", ".lora_B.", "in_features", 1),
            (".lora_B.", ".lora_A.", "out_features", 0),
        ):
            if half not in key:
                continue
            given, wide = state[key].shape[axis], getattr(layers[layer_of(key)], side, None)
            if wide not in (None, given):
                raise ValueError(f"{key} is {given} wide, and the layer of {where} {wide}")
            if (twin := key.replace(half, other)) not in state:
                raise ValueError(f"it holds {key}, but not {twin}")


def check_whole(state: dict, network, part: str, layers: list[str]) -> None:
    """Raises ValueError if the LoRA on a network was trained on a layer that its file lacks.

    layers: the names of the network's own
    """
    there = set(map(layer_of, state))
    for config in getattr(network, "peft_config", {}).values():
        wanted = [f"{part}.{k}" for k in layers if check_target_module_exists(config, k)]
        if lacks := [name for name in wanted if name not in there]:
            raise ValueError(f"it lacks {len(lacks)} of its {len(wanted)} layers, as {lacks[0]}")


def load_lora(pipe, name: str, where: str) -> None:
    """Puts a LoRA on the pipeline: a folder of diffusers or of PEFT, one file, or a hub name.

    where: what it should be for, in words
    Raises ValueError, in one sentence, if it cannot be loaded whole.
    """
    part = "transformer" if getattr(pipe, "transformer", None) else "unet"
    network = getattr(pipe, part, None)
    if network is None or not hasattr(pipe, "load_lora_weights"):
        raise ValueError(f"--lora '{name}': {where} takes no LoRA")
    layers = [key for key, _ in network.named_modules()]
    logging.getLogger("diffusers.loaders").setLevel(logging.CRITICAL)  # what it warns of is checked
    with loading(name), warnings.catch_warnings(action="ignore"):
        file, config, told = lora_file(name)
        if config is None:
            state = pipe.lora_state_dict(str(file))
            state = state[0] if isinstance(state, tuple) else state
        else:
            unnamed = {NAMED.sub(r"\1\2", k): v for k, v in load_file(file).items()}
            state = {f"{part}.{k.removeprefix(PEFT)}": v for k, v in unnamed.items()}
        if part == "transformer":  # those for a U-Net come in more forms
            check_weights(name, state, pipe, where)
        if config is None:
            pipe.load_lora_weights(str(file))
        else:
            known = {field.name for field in fields(LoraConfig)}
            settings = {f"{part}.{k}": v for k, v in config.items() if k in known}
            network.load_lora_adapter(state, prefix=part, metadata=settings)
        if told:
            check_whole(state, network, part, layers)
    if not any(pipe.get_list_adapters().values()):
        raise ValueError(f"nothing in '{name}' is for {where}")


def scales_of(pipe) -> list[float]:
    """alpha / rank of the LoRAs, each once: it stands in no weight."""
    parts = [part for part in pipe.components.values() if hasattr(part, "modules")]
    layers = [m for part in parts for m in part.modules() if isinstance(m, BaseTunerLayer)]
    return sorted({scale for layer in layers for scale in layer.scaling.values()})
