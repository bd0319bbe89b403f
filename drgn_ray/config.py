"""Settings of a run: one spelling for flag, YAML key, field and MLflow parameter.

Frozen, and unknown keys are refused.  The docstring under a field is its ``--help`` text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)
from pydantic import ValidationError as PydanticError

from drgn_ray.errors import ConfigError
from drgn_ray.patience import write_whole

# Dimensions of the latent spaces that --preset auto looks for, of which held-out particles choose; from so many
# particles on, more.
FEW_DIMENSIONS, MANY_DIMENSIONS, MANY_PARTICLES = 12, 20, 100_000


class Settings(BaseModel):
    """Base of all sections."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class DataConfig(Settings):
    """Which particles, in which order."""

    val_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Share of the particles held out for validation (whole chunks, drawn with the seed); their latents are worse."""
    half_set: Literal[1, 2] | None = None
    """Train on this half of the particles alone: whole chunks, the same whatever the seed, not the half sets that their
    poses were refined with; None: on all."""
    slices_per_epoch: PositiveInt | None = None
    """Parts an epoch is cut into, with a checkpoint after each; None: one for every 500,000 particles."""


_OF_ENCODERS = ("encoder", "enc_dim", "enc_layers", "beta")
_OF_COORDINATES = ("dec_dim", "dec_layers", "pe_type", "pe_dim", "feat_sigma")
_OF_DECODERS = ("decoder", *_OF_COORDINATES, "dec_radius", "num_basis", "window", "init", "downsample")
_OF_STEPS = (
    "num_epochs",
    "batch_size",
    "lr",
    "lr_schedule",
    "warmup_epochs",
    "weight_decay",
    "points_share",
    "coarse_share",
    "precision",
)
_OF_ALL = (*_OF_ENCODERS, *_OF_DECODERS, *_OF_STEPS)
_MODEL_HAS_NOT = {
    "vae": (),
    "homogeneous": ("zdim", "num_basis", *_OF_ENCODERS),
    "linear": _OF_ALL,
    "curved": _OF_ALL,
}
_ENCODER_HAS_NOT = {"residual": (), "linear": ("enc_dim", "enc_layers", "window", "downsample")}
_DECODER_HAS_NOT = {
    "coordinate": ("dec_radius",),
    "residual": (),
    "basis": (*_OF_COORDINATES, "dec_radius"),
}


_STARTS_FROM_VOLUMES = ("residual", "basis")


def _has_not(model: ModelConfig) -> dict[str, str]:
    """Name the settings that the chosen kinds are without, and which kind it is."""
    unused = () if model.decoder == "basis" or model.start == "linear" else ("num_basis",)
    return (
        dict.fromkeys(unused, "model without a linear start")
        | dict.fromkeys(_DECODER_HAS_NOT.get(model.decoder, ()), f"{model.decoder} decoder")
        | dict.fromkeys(_ENCODER_HAS_NOT[model.encoder], f"{model.encoder} encoder")
        | dict.fromkeys(_MODEL_HAS_NOT[model.model], f"{model.model} model")
    )


def _refuse_others(section: Settings, model: ModelConfig) -> None:
    for name, kind in _has_not(model).items():
        field = type(section).model_fields.get(name)
        if field is not None and getattr(section, name) != field.default:
            raise ValueError(f"a {kind} has no {name}; leave it out")


class ModelConfig(Settings):
    """The model."""

    model: Literal["vae", "homogeneous", "linear", "curved"] = "vae"
    """vae: every particle has its latent; homogeneous: one volume for all, the decoder alone (cryoDRGN's train_nn);
    linear: a linear subspace of volumes, without a network and in seconds (principal components by EM); curved: its
    latents, and volumes that are polynomials of them."""
    init: Literal["none", "backproject", "linear"] | None = None
    """What volumes the decoder starts from: none, the consensus, or a linear subspace that is fitted first; None: what
    the encoder and the decoder need."""
    zdim: NonNegativeInt = 8
    """Dimension of the latent space; of a linear model the largest, of which held-out particles choose."""
    encoder: Literal["residual", "linear"] = "residual"
    """residual: a network of the image (cryoDRGN's); linear: the posterior of the linear subspace that it starts from,
    and a small network that bends it."""
    enc_dim: PositiveInt = 1024
    """Width of the encoder."""
    enc_layers: NonNegativeInt = 3
    """Residual layers of the encoder."""
    decoder: Literal["coordinate", "residual", "basis"] = "coordinate"
    """coordinate: a network from frequency and latent to the volume's coefficient (cryoDRGN's); residual: a fixed
    consensus and such a network for the difference; basis: learned volumes, and a small network that combines them."""
    dec_dim: PositiveInt = 1024
    """Width of the decoder's network."""
    dec_layers: NonNegativeInt = 3
    """Residual layers of the decoder's network."""
    dec_radius: PositiveInt | None = None
    """Shell up to which a residual decoder changes the consensus; None: a quarter of the box size."""
    num_basis: PositiveInt = 8
    """Volumes that a basis decoder combines beside their mean; the most components of a linear start."""
    pe_type: Literal["gaussian", "geom_ft", "geom_full", "geom_lowf", "geom_nohighf"] = "gaussian"
    """Positional encoding."""
    pe_dim: Annotated[int, Field(ge=2)] | None = None
    """Frequencies an axis of the positional encoding; None: half the box size."""
    feat_sigma: PositiveFloat = 0.5
    """Standard deviation of the gaussian encoding's frequencies, in units of half the box size."""
    beta: NonNegativeFloat | None = None
    """Weight of the KL divergence; None: 1/zdim (cryoDRGN's), or with a linear encoder twice the noise's power."""
    window: bool = True
    """Mask images with a soft circular window, which this flag turns off."""
    downsample: Annotated[int, Field(ge=4, multiple_of=2)] | None = None
    """Box size, px, to which a network's images are cropped in Fourier space, which is cheaper and shows less; volumes
    keep the images' box, and are smooth.  None: all of the images."""

    @model_validator(mode="after")
    def _only_what_it_has(self) -> ModelConfig:
        _refuse_others(self, self)
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> ModelConfig:
        if self.model == "vae" and not self.zdim:
            raise ValueError("a vae has at least one latent dimension; pass zdim, or the model homogeneous")
        if (self.model, self.decoder) == ("vae", "basis") and self.num_basis < self.zdim:
            raise ValueError(f"num_basis {self.num_basis} is less than zdim {self.zdim}; pass at least as many")
        if self.encoder == "linear" and self.init not in (None, "linear"):
            raise ValueError(f"a linear encoder starts from a linear subspace, not from {self.init}; leave init out")
        if not self._can_start and self.init not in (None, "none"):
            raise ValueError(
                f"a {self.decoder} decoder does not start from {self.init}; pass decoder residual or basis"
            )
        if self.model == "homogeneous" and self.init == "linear":
            raise ValueError("a homogeneous model starts from one volume; pass init backproject")
        return self

    def seen_box(self, box_size: int) -> int:
        """Box size, px, of what the model sees of images of `box_size`."""
        return self.downsample or box_size

    @property
    def is_fitted(self) -> bool:
        """Whether it is fitted by EM and not trained step by step."""
        return self.model in ("linear", "curved")

    @property
    def start(self) -> Literal["none", "backproject", "linear"]:
        """What `init` is, if it is not said."""
        if self.is_fitted:
            return "none"
        if self.init is not None:
            return self.init
        if self.model == "homogeneous":
            return "backproject" if self._can_start else "none"
        return "linear" if self._can_start else "none"

    @property
    def _can_start(self) -> bool:
        return self.encoder == "linear" or self.decoder in _STARTS_FROM_VOLUMES


class TrainingConfig(Settings):
    """The optimisation."""

    num_epochs: Annotated[PositiveInt, tyro.conf.arg(aliases=["-n"])] = 20
    """Passes over the particles."""
    batch_size: Annotated[PositiveInt, tyro.conf.arg(aliases=["-b"])] = 16
    """Images a step, over all workers together."""
    lr: PositiveFloat = 5e-4
    """Largest learning rate of Adam."""
    lr_schedule: Literal["constant", "cosine"] = "cosine"
    """How the learning rate goes on after the warm-up; cosine falls to zero at the last epoch's end."""
    warmup_epochs: NonNegativeFloat = 0.5
    """Epochs over which the learning rate rises from zero."""
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay of Adam."""
    points_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of an image's Fourier points, drawn anew every time, at which a step compares it with its slice; with fewer
    a step is cheaper and knows less."""
    coarse_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the training, at its beginning, in which images are compared with slices up to half of the largest
    radius: it finds latents sooner and costs a quarter.  Losses jump where the rest comes in."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the decoder; auto: bf16 where the hardware multiplies it fast, else fp32."""
    back_offs: NonNegativeInt = 3
    """Times that a training which diverges goes back to its last checkpoint and halves the learning rate, before it
    ends."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of weights, order of particles and latent noise."""


class ResourcesConfig(Settings):
    """Where it runs; changes the result by rounding and by the order in which blocks arrive, no more."""

    num_workers: Annotated[NonNegativeInt, tyro.conf.arg(aliases=["--workers"])] = 1
    """Training processes, one a GPU where there are GPUs; 0 trains in this process, without Ray."""
    max_workers: PositiveInt | None = None
    """As many training processes as find room, from num_workers up to this, and more or fewer as machines come and go;
    None: num_workers."""
    await_gpus: bool = False
    """Train on GPUs alone: wait until the cluster has one for every worker, which its autoscaler is asked for."""
    cpus_per_worker: PositiveInt | None = None
    """CPUs reserved (and threads used) by a worker; None: what the machines have less one for reading, shared out."""
    compress_gradients: bool = False
    """Send gradients from worker to worker in bf16, which is half as much; for Ethernet between them."""
    log_seconds: PositiveFloat = 10.0
    """Seconds between lines of progress, which are also the points of MLflow's live metrics."""
    keep_checkpoints: PositiveInt = 2
    """How many of the newest checkpoints to keep."""

    @property
    def awaited_gpus(self) -> int:
        """GPUs that a cluster is waited for to have: one a worker, or one of what trains in one process."""
        return max(self.num_workers, 1) if self.await_gpus else 0

    @model_validator(mode="after")
    def _more_than_none(self) -> ResourcesConfig:
        if self.max_workers is not None and not 1 <= self.num_workers <= self.max_workers:
            raise ValueError(
                f"max_workers {self.max_workers} goes with 1 to as many num_workers, not {self.num_workers}"
            )
        return self


class RunConfig(Settings):
    """Everything a training run is made of."""

    particles: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="STORE")] = ""
    """The particle store."""
    preset: Literal["none", "auto"] = "none"
    """auto: what particles that are left out choose among one volume, a linear and a curved subspace."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    resources: ResourcesConfig = ResourcesConfig()

    @model_validator(mode="after")
    def _only_what_its_model_has(self) -> RunConfig:
        _refuse_others(self.training, self.model)
        return self

    def resolved(self, num_particles: int) -> RunConfig:
        """Fill in what the preset chooses for so many particles.

        A network is not among it: on the sets of `docs/quality.md` none was clearly better on held-out particles.
        """
        if self.preset == "none":
            return self
        chosen = ModelConfig(model="curved", zdim=FEW_DIMENSIONS if num_particles < MANY_PARTICLES else MANY_DIMENSIONS)
        if self.model not in (ModelConfig(), chosen):
            raise ConfigError(
                "--preset auto", "it chooses the model itself", "leave out --model and what belongs to it"
            )
        try:
            return RunConfig.model_validate(self.model_dump() | {"model": chosen.model_dump()})
        except PydanticError as error:
            raise ConfigError(
                "--preset auto", describe(error), "of the training settings only --seed goes with it"
            ) from error

    @property
    def num_epochs(self) -> int:
        """Epochs that the run consists of: a linear model is whole after one."""
        return 1 if self.model.is_fitted else self.training.num_epochs

    def flat(self) -> dict[str, Any]:
        """All settings by field name, without the sections (MLflow parameters)."""
        sections = self.model_dump()
        whole = {name: sections.pop(name) for name in ("particles", "preset")}
        flat = {name: value for section in sections.values() for name, value in section.items()}
        has_not = _has_not(self.model)
        return whole | {name: value for name, value in flat.items() if name not in has_not}


def read_config(path: Path) -> RunConfig:
    """Read a YAML configuration; keys it leaves out keep their defaults."""
    if not path.is_file():
        raise ConfigError(str(path), "there is no such file", "check the path of --config")
    try:
        raw = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            str(path), f"cannot be read as YAML ({_one_line(error)})", "pass a readable YAML file"
        ) from error
    try:
        return RunConfig.model_validate(raw or {})
    except PydanticError as error:
        raise ConfigError(str(path), describe(error), "mend that key, or see `drgn-ray train --help`") from error


def write_config(config: RunConfig, path: Path) -> None:
    """Write all settings as YAML, in sections; at once, for whoever reads them."""
    write_whole(path, yaml.safe_dump(config.model_dump(), sort_keys=False))


def describe(error: PydanticError, *, as_flags: bool = False) -> str:
    """Say in one line what a validation found: key (or flag), value, rule."""
    return "; ".join(_described(item, as_flags) for item in error.errors())


def _described(item: Mapping[str, Any], as_flag: bool) -> str:
    if item["type"] == "value_error":  # of a rule of ours, which names the settings itself
        said = str(item["ctx"]["error"])
        return _FIELD.sub(lambda found: _flag(found[0]), said) if as_flag else said
    key = ".".join(map(str, item["loc"]))
    name = f"{_flag(item['loc'][-1])} {item['input']}" if as_flag else f"{key} = {item['input']!r}"
    return f"{name}: {item['msg'].lower()}"


def _flag(field: str | int) -> str:
    return f"--{str(field).replace('_', '-')}"


# Names of settings that are no words of a sentence, in which rules are written.
_FIELD = re.compile(rf"\b({'|'.join(name for name in _OF_ALL if '_' in name)}|zdim)\b")


def differences(old: RunConfig, new: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Find settings that differ in a way that changes the result: {field: (old, new)}.

    Resources may differ, and so may `num_epochs` (a run can be made longer; a cosine then goes on at its new height).
    """
    before, after = old.flat(), new.flat()
    free = {"num_epochs", *ResourcesConfig.model_fields}
    both = [name for name in before if name in after and name not in free]
    return {name: (before[name], after[name]) for name in both if before[name] != after[name]}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
