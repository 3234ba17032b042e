"""Adds to saved_by_transformers.json what one version of transformers makes of checkpoint folders.

It loads the official configs and processors, and a small model with the tokenizer of "tiny", saves
them again and notes what was written. Run it once for each version, in an environment of its own:

    python -m venv venv-4.45.2 && . venv-4.45.2/bin/activate
    pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
    pip install transformers==4.45.2 pillow
    pip install --no-deps torchvision==0.28.0
    python tests/helpers/make_saved_by_transformers.py FOLDER

FOLDER holds the official JSON files: config-2b.json, config-7b.json, config-72b.json, and of the
others those of 2B (QWEN2VL_OFFICIAL names the same folder). torchvision is there for the video
processors; its compiled operators need not load.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from torch import library

# Before torchvision is imported, which transformers does.
OPERATORS = library.Library("torchvision", "DEF")
for operator in ("nms", "qnms"):
    OPERATORS.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import transformers  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors import safe_open  # noqa: E402

# Beside this script: it runs by its path, and in an environment without this project.
from saved_inputs import (  # noqa: E402
    CHANGED_LIMITS,
    IMAGE_SIZES,
    PROCESSORS,
    SIZES,
    TINY,
    VERSIONS,
    VIDEO_FRAMES,
    VIDEO_LIMITS,
    VIDEO_SIZES,
    gradient,
    read_saved,
    small_config,
    write_saved,
)
from transformers import AutoConfig, AutoProcessor, AutoTokenizer, GenerationConfig  # noqa: E402

# Files as large as a vocabulary.
LARGE = ("tokenizer.json", "vocab.json", "merges.txt", "model.safetensors")
# What depends on the run and not on the version.
LEFT_OUT = ("transformers_version", "_name_or_path")


def read_json(file: Path) -> dict:
    """A file's content, but for what is left out."""
    content = json.loads(file.read_text(encoding="utf-8"))
    return {key: value for key, value in content.items() if key not in LEFT_OUT}


def small_files(prefix: str, folder: Path) -> dict:
    """The small files of a folder by "prefix/name": of JSON the object, of others the text."""
    content: dict = {}
    for file in sorted(folder.iterdir()):
        if file.name in LARGE:
            continue
        if file.suffix == ".json":
            content[f"{prefix}/{file.name}"] = read_json(file)
        else:
            content[f"{prefix}/{file.name}"] = file.read_text(encoding="utf-8")
    return content


def save_configs(official: Path, work: Path) -> dict:
    """The official configs and the generation config, loaded and saved again."""
    saved = {}
    for size in SIZES:
        source = work / f"source-{size}"
        source.mkdir()
        shutil.copy(official / f"config-{size}.json", source / "config.json")
        AutoConfig.from_pretrained(source).save_pretrained(work / size)
        saved.update(small_files(size, work / size))
    GenerationConfig.from_pretrained(official).save_pretrained(work / "generation")
    saved.update(small_files("generation", work / "generation"))
    return saved


def save_tokenizer(official: Path, work: Path) -> dict:
    """The official tokenizer, loaded and saved again: its small files."""
    source = work / "official-tokenizer"
    source.mkdir()
    shutil.copy(official / "config-2b.json", source / "config.json")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(official / name, source / name)
    AutoTokenizer.from_pretrained(source).save_pretrained(work / "tokenizer")
    return small_files("tokenizer", work / "tokenizer")


def processor_source(official: Path, work: Path) -> Path:
    """A folder with the official files for images and templates, and the tokenizer of "tiny"."""
    source = work / "processor-source"
    source.mkdir()
    for name in ("preprocessor_config.json", "chat_template.json"):
        shutil.copy(official / name, source / name)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, source / name)
    (source / "config.json").write_text(json.dumps(small_config(tied=True)))
    return source


def save_processor(name: str, source: Path, target: Path) -> dict:
    """A processor, loaded and saved again: its files, and the grids that it gives when reloaded."""
    limits = CHANGED_LIMITS if name == "changed" else {}
    processor = AutoProcessor.from_pretrained(source, **limits)
    if name == "video":
        if not hasattr(processor, "video_processor"):
            return {}
        set_video_limits(processor)
    processor.save_pretrained(target)

    # What this version then makes of images and of frames.
    again = AutoProcessor.from_pretrained(target)
    images = [Image.fromarray(gradient(*size)) for size in IMAGE_SIZES]
    image_output = again.image_processor(images=images, return_tensors="pt")
    videos = [[Image.fromarray(gradient(*size))] * VIDEO_FRAMES for size in VIDEO_SIZES]
    if hasattr(again, "video_processor"):
        video_output = again.video_processor(videos=videos, return_tensors="pt")
    else:  # one processor for both
        video_output = again.image_processor(images=None, videos=videos, return_tensors="pt")

    saved = small_files(name, target)
    saved[f"{name}/names"] = sorted(file.name for file in target.iterdir())
    saved[f"{name}/image grids"] = image_output["image_grid_thw"].tolist()
    saved[f"{name}/video grids"] = video_output["video_grid_thw"].tolist()
    saved[f"{name}/tokenizer.json changes"] = tokenizer_changes(source, target)
    return saved


def set_video_limits(processor: transformers.ProcessorMixin) -> None:
    """Give a processor limits for videos that images don't have."""
    video_class = type(processor.video_processor)
    if version_number() < (4, 56):  # their `size` does not act
        limits = {
            "min_pixels": VIDEO_LIMITS["shortest_edge"],
            "max_pixels": VIDEO_LIMITS["longest_edge"],
        }
        processor.video_processor = video_class(**limits)
    else:
        processor.video_processor = video_class(size=dict(VIDEO_LIMITS))


def version_number() -> tuple[int, ...]:
    return tuple(int(part) for part in transformers.__version__.split("."))


def tokenizer_changes(source: Path, target: Path) -> dict:
    """The entries of tokenizer.json that saving has changed; the vocabulary must not be one."""
    before = read_json(source / "tokenizer.json")
    after = read_json(target / "tokenizer.json")
    for key in ("vocab", "merges"):
        assert before["model"].pop(key) == after["model"].pop(key)
    assert before.keys() == after.keys()
    return {key: value for key, value in after.items() if value != before[key]}


def save_model(name: str, tied: bool, work: Path) -> dict:
    """A model of the small config, saved: its files and the names of its tensors.

    "names in memory" are those of its state_dict, which other tools write.
    """
    source = work / f"source-{name}"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(small_config(tied)))
    config = AutoConfig.from_pretrained(source)
    # The class is older than this name for it.
    auto_class = getattr(transformers, "AutoModelForImageTextToText", None)
    if auto_class is None:
        auto_class = transformers.AutoModelForVision2Seq
    model = auto_class.from_config(config)
    model.save_pretrained(work / name)

    saved = small_files(name, work / name)
    with safe_open(work / name / "model.safetensors", framework="pt") as weights:
        saved[f"{name}/names in the file"] = sorted(weights.keys())
    saved[f"{name}/names in memory"] = sorted(model.state_dict())
    return saved


def save_everything(official: Path, work: Path) -> dict:
    """All that the stored file says about this version."""
    saved = save_configs(official, work)
    saved.update(save_tokenizer(official, work))
    source = processor_source(official, work)
    for name in PROCESSORS:
        saved.update(save_processor(name, source, work / name))
    saved.update(save_model("tied", True, work))
    saved.update(save_model("untied", False, work))
    return saved


def main() -> None:
    version = transformers.__version__
    assert version in VERSIONS, f"{version} is none of {VERSIONS}"
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as work:
        content = save_everything(Path(sys.argv[1]), Path(work))
    saved = read_saved()
    saved[version] = content
    write_saved(saved)
    print(f"{version}: {len(content)} entries")


if __name__ == "__main__":
    main()
