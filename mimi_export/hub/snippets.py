"""Programs for the model card: complete, and with the names, shapes and sizes of one variant's own definition.

Each is one of `templates` whose `@WORDS@` are filled in from a `Manifest`, so a change of the contract changes the
card. They read `speech.wav` (mono, 16 bit, at the model's rate) and take the files from `mimi/<variant>`.
"""

from __future__ import annotations

from dataclasses import dataclass

from mimi_export.contract.batch_files import BatchManifest
from mimi_export.contract.manifest import Manifest
from mimi_export.contract.spec import StateSpec
from mimi_export.errors import ConfigError
from mimi_export.hub import templates

DOWNLOADS = "mimi"  # local directory that the card downloads into


@dataclass(frozen=True)
class Snippet:
    """One program: the fence's language, what it is, what has to be installed first, and the code."""

    language: str
    title: str
    install: str
    code: str


def variant_snippets(manifest: Manifest) -> list[Snippet]:
    """Clients of a streaming variant of the window layout.

    Raises:
        ConfigError: the variant has fixed frames per call; these clients pass any number.
    """
    if manifest.shape.layout != "window":
        raise ConfigError(f"{manifest.name} has the layout {manifest.shape.layout}; snippets are for the window layout")
    words = _words(manifest)
    return [
        Snippet("python", "Python", "pip install mimi-export", _fill(templates.PYTHON, words)),
        Snippet(
            "python", "Python with nothing but onnxruntime", "pip install onnxruntime", _fill(templates.BARE, words)
        ),
        Snippet("javascript", "JavaScript", "npm install onnxruntime-node", _fill(templates.JAVASCRIPT, words)),
        Snippet("rust", "Rust", "cargo add ort@=2.0.0-rc.10", _fill(templates.RUST, words)),
        Snippet("csharp", "C#", "dotnet add package Microsoft.ML.OnnxRuntime", _fill(templates.CSHARP, words)),
    ]


def batch_snippet(manifest: BatchManifest, repo_id: str) -> Snippet:
    """Whole clips with transformers.js."""
    words = {"REPO": repo_id, "DTYPE": next(iter(manifest.dtypes)), "RATE": str(manifest.sampling_rate)}
    return Snippet(
        "javascript",
        "Whole clips with transformers.js",
        "npm install @huggingface/transformers",
        _fill(templates.WHOLE, words),
    )


def _words(manifest: Manifest) -> dict[str, str]:
    encoder, geometry = manifest.spec("encoder"), manifest.geometry
    decoder = manifest.spec("decoder")
    keys = [state for state in encoder.states if state.kind == "key"]
    conv = next(state for state in encoder.states if state.kind == "conv")
    return {
        "DIRECTORY": f"{DOWNLOADS}/{manifest.name}",
        "FRAME": str(geometry.frame_size),
        "RATE": str(geometry.sampling_rate),
        "CODEBOOKS": str(manifest.shape.num_codebooks),
        "LAYERS": str(len(keys)),
        "HEADS": str(keys[0].past_shape[1]),
        "HEAD_DIM": str(keys[0].past_shape[3]),
        "ENCODER": encoder.file_name,
        "DECODER": decoder.file_name,
        "AUDIO_IN": encoder.data_input.name,
        "CODES_OUT": encoder.data_output.name,
        "CODES_IN": decoder.data_input.name,
        "AUDIO_OUT": decoder.data_output.name,
        "PAST": _affixes(conv.past.name, conv)[0],
        "PRESENT": _affixes(conv.present.name, conv)[0],
        "CONV_HEAD": conv.name[: conv.name.index("enc")],
        "CONV_TAIL": conv.name[conv.name.rindex("_") :],
        "KEY": keys[0].name.rpartition("_")[0],
        "VALUE": next(state for state in encoder.states if state.kind == "value").name.rpartition("_")[0],
        "BATCH": str(encoder.data_input.shape[0]),
        "PAST_LENGTH": str(keys[0].past_shape[2]),
    }


def _affixes(name: str, state: StateSpec) -> tuple[str, str]:
    """What stands before and after a state's own name in an input's or output's name."""
    head, _, tail = name.partition(state.name)
    return head, tail


def _fill(template: str, words: dict[str, str]) -> str:
    for word, value in words.items():
        template = template.replace(f"@{word}@", value)
    return template.strip("\n")
