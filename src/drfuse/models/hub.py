"""A model as a folder or a repository of the Hugging Face hub: built from stored facts, read and written.

A folder is data. Nothing in it is executed, imported or unpickled: its weights are read by safetensors, and
its class must be one that this program has imported.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from inspect import signature
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin, snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from drfuse import __version__
from drfuse.errors import InputError, MissingInputError, unwritable
from drfuse.files import atomic_file, private
from drfuse.imports import import_path, imported_classes
from drfuse.models.cxr_encoders import only_new_backbones, pretrained_configs
from drfuse.run import ModelFacts, Run, RunFacts
from drfuse.sums import sha256

logger = logging.getLogger(__name__)

_Model = TypeVar("_Model", bound="HubModel")

CARD = "README.md"
LICENSE = "LICENSE.md"
HUB_FILES = ("config.json", "model.safetensors", CARD, LICENSE, "recalibration.json", "sums.json")
"""All that a folder in the hub's form may hold, and all that is downloaded of a repository."""
_KEPT = (CARD, LICENSE, "recalibration.json")

_PLAIN_CARD = """
---
{{ card_data }}
---

# {{ model }}

A `{{ class_path }}` of drfuse, which predicts from ICU records and chest radiographs. For research, not for
clinical decisions.

```python
from drfuse.models import FusionModel

model = FusionModel.from_pretrained("FOLDER OR HUB ID")
```

This card is written with the weights alone, so it knows neither the data nor how well the model predicts.
`drfuse export RUN --out FOLDER` writes a card with both.

If the weights were trained on MIMIC, they may be shared only as a credentialed PhysioNet project.
""".lstrip()


@dataclass(frozen=True)
class OpenedFolder:
    """What the folder of a model holds besides the weights, for `save_pretrained` to write back.

    Attributes:
        facts: What a prediction needs; None for a model without a run.
        weights: SHA-256 of its `model.safetensors`.
        files: By name, its model card, licence and recalibration. Only the licence is true of other weights.
    """

    facts: RunFacts | None = None
    weights: str | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)


class HubModel(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="drfuse",
    tags=["ehr", "chest-x-ray", "intensive-care"],
    model_card_template=_PLAIN_CARD,
):
    """A model with `from_pretrained`, `save_pretrained` and `push_to_hub`.

    Attributes:
        init_args: The constructor's arguments, defaults included; enough to build the model again.
    """

    init_args: dict[str, Any]
    _opened = OpenedFolder()

    @property
    def facts(self) -> RunFacts | None:
        """What a prediction needs besides the model, if it was read from a folder that has it."""
        return self._opened.facts

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        map_location: str | torch.device = "cpu",
        **model_kwargs: Any,
    ) -> Self:
        """Return a trained model in evaluation mode.

        Args:
            pretrained_model_name_or_path: A run, a folder that `drfuse export` or `save_pretrained` wrote, or
                the id of such a repository on the hub ("owner/name").
            force_download: Download files that are in the cache, too.
            token: Access token of the hub; by default the one of `hf auth login`.
            cache_dir: Where downloaded files are kept.
            local_files_only: Do not use the network.
            revision: Branch, tag or commit of the repository; by default `main`.
            map_location: Device of the weights.
            model_kwargs: Arguments of the model in place of the stored ones, such as `dropout=0.1`.

        Raises:
            MissingInputError: If there is no such folder or repository, or it has no model.
            InputError: If its files are damaged, or its model is of another class than this one or not
                imported.
        """
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            folder = _download(
                str(pretrained_model_name_or_path),
                force_download=force_download,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                revision=revision,
            )
        for path in (Run(folder).model, Run(folder).facts):
            if not path.is_file():
                raise MissingInputError(
                    f"{folder} has no {path.name}, so it is not a model; choose a run, or a folder that "
                    "`drfuse export` or `save_pretrained` wrote"
                )
        Run(folder).check()
        facts = ModelFacts.read(folder) or RunFacts.read(folder)
        model = load_model(folder, facts, cls, **model_kwargs)
        model._opened = OpenedFolder(
            facts if isinstance(facts, RunFacts) else None, sha256(Run(folder).model), _read_kept(folder)
        )
        return model.to(map_location)

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        config: Any = None,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: dict[str, Any] | None = None,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """Write `config.json`, the weights and a model card to a folder, whose own card is kept.

        A model whose weights are still those that it was read with keeps its card and recalibration. The
        arguments are those of `PyTorchModelHubMixin`; `config` is not used.

        Raises:
            InputError: If the folder is a run.
        """
        run = Run(Path(save_directory))
        if run.config.exists() or run.predictions.exists():
            raise InputError(f"{run.folder} is a run of `drfuse train`; choose a different folder")
        with private():
            return super().save_pretrained(
                save_directory,
                config=config,
                repo_id=repo_id,
                push_to_hub=push_to_hub,
                model_card_kwargs=model_card_kwargs,
                **push_to_hub_kwargs,
            )

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write `config.json` and the weights and, if these are as they were read, their other files."""
        saved = Run(save_directory)
        save_weights(self, saved.model)
        described = describe_model(self, self_contained=True)
        if self.facts is not None:
            replace(self.facts, model=described).write(saved.facts)
        else:
            n_features, n_labels = list(self.init_args.values())[:2]
            ModelFacts(__version__, described, n_features, n_labels).write(saved.facts)
        saved.recalibration.unlink(missing_ok=True)  # it may be of other weights
        are_unchanged = self._opened.weights == sha256(saved.model)
        for name, content in self._opened.files.items():
            if (are_unchanged or name == LICENSE) and not (save_directory / name).exists():
                (save_directory / name).write_bytes(content)
        saved.write_sums()

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Return the card of a model of which only the weights are known."""
        named = {"model": type(self).__name__, "class_path": import_path(type(self))}
        card: ModelCard = cast(Any, super()).generate_model_card(*args, **(named | kwargs))
        return card


def load_model(folder: Path, facts: RunFacts | ModelFacts, kind: type[_Model], **changed_args: Any) -> _Model:
    """Return the model of a folder with its weights, in evaluation mode, on the CPU.

    Args:
        folder: The folder, for the weights and for messages.
        facts: What the model is built from.
        kind: The class that it must be of.
        changed_args: Arguments of the model in place of the stored ones.

    Raises:
        InputError: If the model is of another class, its class is not imported, or it cannot be built.
    """
    path = facts.model["class_path"]
    found = kind if path == import_path(kind) else imported_classes(HubModel).get(path)
    if found is None:
        raise InputError(
            f"the model of {folder} is {path}, which is not one of drfuse's; import it before you open the "
            f"folder (on the command line: --model {path}), if you trust it"
        )
    if not issubclass(found, kind):
        raise InputError(
            f"the model of {folder} is a {found.__name__}, not a {kind.__name__}; open it with "
            f"{found.__name__}.from_pretrained"
        )
    weights = Run(folder).model
    weights.open("rb").close()  # safetensors says of a file that may not be read that there is none
    try:
        with only_new_backbones():
            model = found(facts.n_features, facts.n_labels, **(facts.model["init_args"] | changed_args))
        model.load_state_dict(load_file(weights))
    except Exception as error:  # a constructor may raise anything, given wrong arguments
        reason = " ".join(str(error).split())
        raise InputError(f"the model of {folder} cannot be loaded: {reason}; train it again") from error
    return model.eval()


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a model's weights atomically.

    Raises:
        OSError: If they cannot be written.
    """
    weights = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    with atomic_file(path) as partial:
        try:
            save_file(weights, partial)
        except SafetensorError as error:
            raise unwritable(path, error) from error


def describe_model(model: HubModel, self_contained: bool = False) -> dict[str, Any]:
    """Return a model's class path and the arguments after the two sizes, defaults included.

    If `self_contained`, pretrained backbones are described by their configurations instead of the folders
    or hub names that they were read from.
    """
    sizes = list(signature(type(model)).parameters)[:2]
    arguments = {name: _plain(value) for name, value in model.init_args.items() if name not in sizes}
    if self_contained:
        configs = pretrained_configs(model)
        arguments |= {
            name: configs[value]
            for name, value in arguments.items()
            if isinstance(value, str) and value in configs
        }
    return {"class_path": import_path(type(model)), "init_args": arguments}


def _read_kept(folder: Path) -> dict[str, bytes]:
    """Return the files that `save_pretrained` writes back, by name.

    Links to what is neither in the folder nor in the hub's cache are left out, with a warning: a stranger's
    `README.md` could lead to a file of the user's, which would then be uploaded.
    """
    found = {}
    own = folder.resolve()
    for path in (folder / name for name in _KEPT if (folder / name).is_file()):
        if path.resolve().parent in (own, own.parent.parent / "blobs"):
            found[path.name] = path.read_bytes()
        else:
            logger.warning(
                "%s is a link that leads out of the folder, so save_pretrained leaves it out", path
            )
    return found


def _plain(value: Any) -> Any:
    """Return a value as YAML stores it: tuples become lists, and paths text."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _download(repo_id: str, **options: Any) -> Path:
    """Return the folder in the cache with one revision of a repository.

    Raises:
        MissingInputError: If it is not on the hub, or the hub cannot be reached.
    """
    try:
        return Path(snapshot_download(repo_id, allow_patterns=list(HUB_FILES), **options))
    except (OSError, ValueError) as error:  # of the network, the repository or its id
        reason = str(error).strip().split("\n", 1)[0]
        raise MissingInputError(
            f"{repo_id} is neither a folder here nor a repository that the hub gives: {reason}"
        ) from error
