"""From a folder to something that evaluates steps: device, precision, weights, adapters, tokenizer."""

from __future__ import annotations

import json
import os
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GenerationConfig,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)
from transformers.utils import logging

from rallychat.catalog.precision import Choice, Device, Machine, choose_precision
from rallychat.engines.hf_adapters import AdapterRows, attached, merged
from rallychat.engines.hf_decoder import Runner, SlotDecoder, TurnDecoder, agrees
from rallychat.engines.hf_options import TransformersOptions, check_adapter, check_folder
from rallychat.engines.hf_quantize import quantize
from rallychat.engines.hf_seq2seq import Seq2Seq
from rallychat.engines.hf_tokenizer import CheckpointTokenizer
from rallychat.engines.llamacpp_params import physical_cores
from rallychat.engines.protocol import WorkerSpec
from rallychat.errors import EngineUnavailable

_CHUNK_CPU: Final = 128
_CHUNK_GPU: Final = 1024


@dataclass(frozen=True, slots=True)
class Loaded:
    """An opened checkpoint."""

    runner: Runner
    tokenizer: CheckpointTokenizer
    adapters: AdapterRows
    ends: frozenset[int]
    vocabulary: int
    window: int
    chunk: int
    chat_template: str | None
    bos_token: str
    eos_token: str


def load(spec: WorkerSpec, options: TransformersOptions) -> Loaded:
    """Open what `spec` names; blocks.

    Raises:
        SettingsError: a folder holds no checkpoint.
        EngineUnavailable: it cannot be run here; the message says what and why.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folder = Path(spec.path)
    check_folder(folder)
    adapters = {name: Path(where) for name, where in options.adapters.items()}
    for name, where in adapters.items():
        check_adapter(name, where)
    config = _config(folder, options)
    seq2seq = _is_seq2seq(config, folder, options)
    machine = _machine(options)
    if machine.device == "cpu":
        torch.set_num_threads(spec.threads or physical_cores())
    window = min(spec.window, _trained_window(config) or spec.window)
    choice = choose_precision(
        parameters_in(folder),
        machine,
        cache=spec.slots * window * cache_bytes(config),
        dtype=options.dtype,
        quantize=options.quantize,
        multi_gpu=options.multi_gpu,
    )
    if not choice.fits and options.quantize == "auto":
        raise EngineUnavailable(
            f"{spec.model} needs about {choice.needed / 2**30:.1f} GiB as {choice.precision}; "
            f"{choice.room / 2**30:.1f} GiB are free on the {machine.device}.",
            hint="choose a smaller model, fewer slots or a shorter window",
        )
    try:
        # Libraries' advice to programmers; errors are raised.
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            tokenizer = AutoTokenizer.from_pretrained(
                folder, trust_remote_code=options.remote_code, local_files_only=True
            )
            model, rows = _model(folder, config, seq2seq, adapters, choice, machine, options, spec.slots)
            return _opened(spec, options, model, rows, tokenizer, window, machine, seq2seq=seq2seq)
    except torch.cuda.OutOfMemoryError as exc:
        raise EngineUnavailable(
            f"{spec.model} does not fit into the GPU's memory as {choice.precision}.",
            hint="quantize=int8 or int4, fewer slots, or a shorter window",
        ) from exc
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError, AttributeError) as exc:
        raise EngineUnavailable(f"Transformers could not load {folder.name}: {exc}") from exc


def _opened(
    spec: WorkerSpec,
    options: TransformersOptions,
    model: Any,
    rows: AdapterRows,
    tokenizer: Any,
    window: int,
    machine: Machine,
    *,
    seq2seq: bool,
) -> Loaded:
    reading = CheckpointTokenizer(tokenizer, whole=seq2seq)
    scores = model.get_input_embeddings().weight.shape[0]
    return Loaded(
        runner=_runner(model, spec, window, rows, reading, tokenizer, options, seq2seq=seq2seq),
        tokenizer=reading,
        adapters=rows,
        ends=_ends(model, tokenizer),
        vocabulary=min(int(scores), reading.vocabulary),
        window=window,
        chunk=options.prefill or (_CHUNK_CPU if machine.device == "cpu" else _CHUNK_GPU),
        chat_template=_template(tokenizer),
        bos_token=str(tokenizer.bos_token or ""),
        eos_token=str(tokenizer.eos_token or ""),
    )


def _runner(
    model: Any,
    spec: WorkerSpec,
    window: int,
    rows: AdapterRows,
    reading: CheckpointTokenizer,
    tokenizer: Any,
    options: TransformersOptions,
    *,
    seq2seq: bool,
) -> Runner:
    if seq2seq:
        return Seq2Seq(model, slots=spec.slots, adapters=rows, around=_around(reading, tokenizer))
    if not agrees(model, window=window):
        return TurnDecoder(model, slots=spec.slots, adapters=rows)
    devices = {parameter.device for parameter in model.parameters()}
    graphs = options.graphs and len(devices) == 1 and next(iter(devices)).type == "cuda"
    return SlotDecoder(model, slots=spec.slots, window=window, adapters=rows, graphs=graphs)


def _config(folder: Path, options: TransformersOptions) -> Any:
    try:
        return AutoConfig.from_pretrained(
            folder, trust_remote_code=options.remote_code, local_files_only=True
        )
    except (OSError, ValueError, KeyError) as exc:
        said = check_folder(folder)
        name = ", ".join(said.get("architectures") or [str(said.get("model_type", "unknown"))])
        if said.get("auto_map") and not options.remote_code:
            raise EngineUnavailable(
                f"'{name}' brings Python code of its own, which is not run unless you allow it for this model.",
                hint="set remote_code in the model's options if you trust its author",
            ) from exc
        raise EngineUnavailable(f"Transformers does not know the architecture '{name}'.") from exc


def _is_seq2seq(config: Any, folder: Path, options: TransformersOptions) -> bool:
    """Whether it is an encoder-decoder. Raises EngineUnavailable if it is nothing that writes text."""
    if config.is_encoder_decoder and config.model_type in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        return True
    own = options.remote_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if not config.is_encoder_decoder and (own or config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        return False
    name = ", ".join(getattr(config, "architectures", None) or [config.model_type])
    raise EngineUnavailable(
        f"'{name}' ({folder.name}) is no model that writes text.", hint="choose a chat model"
    )


def _machine(options: TransformersOptions) -> Machine:
    """What there is now, as torch sees it."""
    import psutil

    device = options.device
    if device == "auto":
        mps = torch.backends.mps.is_available()
        device = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    if device == "cuda":
        if not torch.cuda.is_available():
            raise EngineUnavailable("There is no CUDA GPU that torch can use.", hint="device=cpu")
        free = tuple(torch.cuda.mem_get_info(index)[0] for index in range(torch.cuda.device_count()))
        return Machine("cuda", free, bfloat16=torch.cuda.get_device_capability() >= (8, 0))
    return Machine(cast("Device", device), (psutil.virtual_memory().available,), bfloat16=device == "cpu")


def _model(
    folder: Path,
    config: Any,
    seq2seq: bool,
    adapters: Mapping[str, Path],
    choice: Choice,
    machine: Machine,
    options: TransformersOptions,
    slots: int,
) -> tuple[Any, AdapterRows]:
    """The weights, with one adapter merged or several beside them.

    What is to be quantised is first read into the CPU's memory, so that an adapter is merged into exact weights, and
    goes to the device layer by layer.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    torch.backends.cuda.enable_cudnn_sdp(enabled=False)  # see `hf_graphs.planned`
    auto = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
    spread = options.multi_gpu and machine.device == "cuda" and len(machine.memory) > 1
    quantised = choice.quantize != "none" and not spread
    place: Any = "balanced" if spread else {"": "cpu" if quantised else machine.device}
    model, said = auto.from_pretrained(
        folder,
        config=config,
        dtype=getattr(torch, choice.dtype),
        device_map=place,
        trust_remote_code=options.remote_code,
        local_files_only=True,
        use_safetensors=True,
        output_loading_info=True,
    )
    if said["missing_keys"]:  # Transformers would make them up
        raise ValueError(f"its files lack {', '.join(sorted(said['missing_keys'])[:3])}")
    if len(adapters) == 1:
        model = merged(model, next(iter(adapters.values())))
    if choice.quantize != "none" and not spread:
        model = quantize(model, choice.quantize, machine.device)
    rows = AdapterRows()
    if len(adapters) > 1:
        model, rows = attached(model, adapters, slots=slots)
    return model.eval().requires_grad_(requires_grad=False), rows


def _ends(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end an answer, as the checkpoint says."""
    generation = getattr(model, "generation_config", None) or GenerationConfig()
    said = generation.eos_token_id if generation.eos_token_id is not None else tokenizer.eos_token_id
    found = said if isinstance(said, list) else [said]
    return frozenset(int(token) for token in found if token is not None)


def _around(reading: CheckpointTokenizer, tokenizer: Any) -> tuple[list[int], list[int]]:
    """The tokens this tokenizer puts in front of a text and behind it."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    at = next((n for n in range(len(whole)) if whole[n : n + len(bare)] == bare), 0)
    return list(whole[:at]), list(whole[at + len(bare) :])


def _template(tokenizer: Any) -> str | None:
    found = getattr(tokenizer, "chat_template", None)
    if isinstance(found, dict):
        found = found.get("default")
    return found if isinstance(found, str) else None


def _trained_window(config: Any) -> int | None:
    """Tokens the model was trained to see; None: it does not say, or positions are relative."""
    found = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return int(found) if found else None


def cache_bytes(config: Any) -> int:
    """Bytes one token takes in the cache at 16 bits."""
    text = config.get_text_config(decoder=True)
    heads = getattr(text, "num_attention_heads", None) or 1
    size = getattr(text, "head_dim", None) or (getattr(text, "hidden_size", None) or 0) // heads
    return int(4 * text.num_hidden_layers * (getattr(text, "num_key_value_heads", None) or heads) * size)


def parameters_in(folder: Path) -> int:
    """How many parameters a checkpoint's safetensors files hold, read from their headers."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header: dict[str, Any] = json.loads(file.read(size))
        for name, tensor in header.items():
            if name != "__metadata__":
                count = 1
                for extent in tensor["shape"]:
                    count *= extent
                total += count
    return total
