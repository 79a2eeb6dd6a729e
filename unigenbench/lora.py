"""A LoRA for a pipeline of diffusers, loaded whole or not at all.

diffusers only warns of weights that are for no layer or are not there, and draws all the same.

    load_lora(pipe, "runs/flux-lora/final", "the FluxPipeline in 'black-forest-labs/FLUX.1-dev'")
"""

import json
import re
from dataclasses import fields
from pathlib import Path

from huggingface_hub import snapshot_download
from peft import LoraConfig, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file

from models.base import told_in_one_sentence

PEFT = "base_model.model."  # before each key of a LoRA that PEFT saved


def lora_file(name: str) -> tuple[Path | str, dict | None]:
    """The file of a LoRA in a folder, a file or a hub name, and PEFT's configuration of it.

    None: in the form of diffusers, or of those whose form it knows.
    """
    path, known = Path(name), ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
    if not path.exists():
        if name.startswith((".", "/", "~", "assets", "runs")) or name.count("/") != 1:
            raise ValueError("no such file or folder, and no hub name")
        path = Path(snapshot_download(name, allow_patterns=[*known, "adapter_config.json"]))
        if not any((path / file).is_file() for file in known):
            return name, None  # of another name there, which diffusers looks for
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
        keys = file.keys()
    peft = any(key.startswith(PEFT) for key in keys)
    if peft and not config.is_file():
        raise ValueError("adapter_config.json is not beside it, which holds its rank and its alpha")
    return path, json.loads(config.read_text()) if peft else None


def check_lora(name: str, state: dict, networks: dict, where: str) -> None:
    """Raises ValueError unless each weight of a LoRA is for a layer of these networks, as wide.

    state: with the network's name before each key
    """
    layers = {
        f"{name}.{inner}": layer
        for name, network in networks.items()
        for inner, layer in network.named_modules()
    }
    about = {key: layers.get(re.split(r"\.lora[._]", key)[0]) for key in state if ".lora" in key}
    odd = [key for key in state if about.get(key) is None and not key.endswith(".alpha")]
    if len(odd) == len(state):
        raise ValueError(f"nothing in '{name}' is for {where}")
    if odd:
        raise ValueError(
            f"{len(odd)} of its {len(state)} weights, as {odd[0]}, are not for {where}"
        )
    for key, layer in about.items():
        side, axis = ("in_features", 1) if ".lora_A." in key else ("out_features", 0)
        wide = getattr(layer, side, None)
        if key.endswith((".lora_A.weight", ".lora_B.weight")) and wide not in (
            None,
            state[key].shape[axis],
        ):
            raise ValueError(f"{key} is {state[key].shape[axis]} wide, and {wide} in {where}")
        twin = key.replace(".lora_A.", ".lora_#.").replace(".lora_B.", ".lora_A.")
        if (twin := twin.replace(".lora_#.", ".lora_B.")) not in state:
            raise ValueError(f"it holds {key}, but not {twin}")


def load_lora(pipe, name: str, where: str) -> None:
    """Puts a LoRA on the pipeline: a folder of diffusers or of PEFT, one file, or a hub name.

    where: what it should be for, in words
    Raises ValueError, in one sentence, if it cannot be loaded whole.
    """
    part = "transformer" if getattr(pipe, "transformer", None) else "unet"
    network = getattr(pipe, part)
    with told_in_one_sentence(name):
        file, config = lora_file(name)
        if config is None:
            state = pipe.lora_state_dict(str(file))
            state = state[0] if isinstance(state, tuple) else state
        else:
            state = {f"{part}.{k.removeprefix(PEFT)}": v for k, v in load_file(file).items()}
        modules = {k: v for k, v in pipe.components.items() if hasattr(v, "named_modules")}
        check_lora(name, state, modules, where)
        if config is None:
            pipe.load_lora_weights(str(file))
        else:
            known = {field.name for field in fields(LoraConfig)}
            settings = {k: v for k, v in config.items() if k in known}
            network.load_lora_adapter(
                state, prefix=part, metadata={f"{part}.{k}": v for k, v in settings.items()}
            )
        for adapter in getattr(network, "peft_config", {}):
            layers = get_peft_model_state_dict(network, adapter_name=adapter)
            lacks = [key for key in layers if f"{part}.{key}" not in state]
            if lacks:
                raise ValueError(f"it lacks {len(lacks)} of its {len(layers)} weights: {lacks[0]}")


def scales_of(pipe) -> list[float]:
    """alpha / rank of the LoRAs, each once: it stands in no weight."""
    parts = [part for part in pipe.components.values() if hasattr(part, "modules")]
    layers = [layer for part in parts for layer in part.modules()]
    return sorted({s for layer in layers for s in getattr(layer, "scaling", {}).values()})
