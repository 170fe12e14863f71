"""A picture in locked weights, at a minimum of the loss that is steep in their directions.

The owner writes the values of a small picture into weights that only the key can name, keeps them fixed, and trains all
others so that any change of the locked ones raises the loss: an adversary's fine-tuning then keeps them in place.

    s~_i = w_p(i) / (2 sd),   s_i = 2 pixel_i / 255 - 1        (``wmarena.schemes.tartaglione.payload``)
    min over w_f of L(Gamma_0) - lambda mean_r L(Gamma_r)                     (``wmarena.schemes.tartaglione.training``)
    min over w_f of L(Gamma_0) - lambda mean_r [L(Gamma_r) - L(Gamma_0)]                           (the default, "gap")
    r = Pearson correlation of s and s~ over all n values
    verdict: P[R >= r] <= 1e-6, atanh(r) sqrt(n - 3) being standard normal, for positions are uniform and independent of
    any network that was trained without them
    verdict_paper: r >= 0.5, above which the picture can be recognised by eye

    w_p(i)  weight at the i-th position     w_f  the free weights     n   pixels times colours
    lambda  ``lambda1``                     R    ``replicas``         sd  of the layer's initial weights

Source: Tartaglione, Grangetto, Cavagnino, Botta, "Delving in the loss landscape to embed robust watermarks into neural
networks", ICPR 2020.
Differs from the paper:
- Objective: since Gamma_r is close to Gamma_0, the printed rule shrinks the useful gradient by 1 - lambda and steepens
  little. The default raises only the gap; "paper" is the printed rule, "naive" only locks.
- lambda: 0.3 for "gap", 0.1 for "paper"; 1 and 3 are steeper but cost accuracy, and with 3 tuning diverges. The
  authors' code uses 1e-6 for another rule (it subtracts lambda times the mean of the replicas' weights, each after a
  step that lowers its loss), which is a weight decay and acts like "naive"; it is not offered.
- Scale: the paper divides the picture by one number. Here white is two standard deviations of the layer's own initial
  weights, so that no locked weight is conspicuous; reading divides by it before r is computed.
- Positions are weights of convolutions and dense layers, the output layer included; no biases, no normalisation.
- The network trains as its workload does, not always by SGD at 0.1 for 300 epochs; ``mode`` "pretrained" continues
  from the clean network.
- The paper gives no threshold.

The ascent ends only at chance level, so a large lambda may make the minimum too steep for the rate of a later
fine-tuning, which then leaves it and loses picture and accuracy together, while a picture that was only locked
survives: compare objectives at the rates in question.

The picture is public, the positions are secret. They are drawn from the seed, so nobody can choose weights that already
hold a given picture. But a forger can read any positions and claim their values as the picture (``forge``): r is
evidence only for a picture that was committed to before the network was published.
"""

import base64
import hashlib
import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import nn

from wmarena.schemes.base import Access, Carrier, Owner, PMethod, Recipe, Samples, Suspect, Verdict, Workload
from wmarena.schemes.keys import Key
from wmarena.schemes.params import Json, param
from wmarena.schemes.prf import Prf
from wmarena.schemes.tartaglione.emblem import MIN_SIDE, emblem
from wmarena.schemes.tartaglione.payload import Payload, PayloadLayer, as_pixels, image_of, layers_of, weight_layers
from wmarena.schemes.tartaglione.training import LockedTraining, Objective, Replicas, ValleySettings, mean_rise
from wmarena.schemes.triggers.embedding import ContinuedTraining

_LAMBDA = {"naive": 0.0, "paper": 0.1, "gap": 0.3}


@dataclass(frozen=True, kw_only=True)
class Tartaglione(ContinuedTraining):
    """Picture in locked weights, with replicas that make the loss steep around them (Tartaglione et al. 2020)."""

    name: ClassVar[str] = "tartaglione"
    access: ClassVar[Access] = "white"
    p_method: ClassVar[PMethod] = "gauss"
    paper: ClassVar[str] = (
        "Tartaglione et al., Delving in the loss landscape to embed robust watermarks into neural networks, ICPR 2020"
    )
    threat_model: ClassVar[str] = (
        "the adversary holds the weights and knows algorithm and picture, not the positions; fine-tunes or quantises"
    )

    usual_batch: ClassVar[int | None] = None

    share: float = param(
        0.02, doc="largest share of weights locked; bounds the picture", stage="key", low=0, high=0.2, low_open=True
    )
    colours: Literal["rgb", "grey"] = param("rgb", doc="rgb: three values a pixel; grey: one", stage="key")
    mode: Literal["scratch", "pretrained"] = param(
        "scratch", doc="train with locked weights from scratch, or continue from the clean network", stage="embed"
    )
    objective: Objective = param(
        "gap", doc="naive: lock only; paper: lower L_0 - lambda L_r; gap: lower L_0 - lambda (L_r - L_0)", stage="embed"
    )
    lambda1: float | None = param(
        None, doc="weight of the replicas' loss; none: 0.3 (gap), 0.1 (paper)", stage="embed", low=0
    )
    replicas: int = param(4, doc="R, replicas a step", stage="embed", low=1)
    sigma_rel: float = param(
        1.0, doc="noise of the replicas, in standard deviations of a layer", stage="embed", low=0, low_open=True
    )
    warm_up: int | None = param(
        None, doc="first epochs, without replicas; none: a quarter, at most 10 (scratch), or 0", stage="embed", low=0
    )
    visible: float = param(
        0.5, doc="correlation at which the picture is recognisable: the paper's rule", stage="verify", low=-1, high=1
    )

    def keygen(self, task: Workload, prf: Prf) -> Key:
        """Draw a seed; the workload decides size and layers. Raises ValueError: the share is too small."""
        layers = weight_layers(task.network(seed=0))
        public: dict[str, Json] = {
            "config": self.config(until="key"),
            "workload": task.name,
            "layers": [layer.described() for layer in layers],
        }
        return _with_image(Key(self.name, prf.stream("seed", 32), public), self._picture(task.name, layers))

    def embed(self, model: nn.Module, owner: Owner, key: Key) -> tuple[nn.Module, Key]:
        """Write the picture, then train around it. Raises FloatingPointError: the loss became NaN or infinite."""
        recipe = self.recipe(owner.task, len(owner.train))
        LockedTraining(model, owner, Payload.of(key), recipe, self._valley(recipe)).run()
        return model.eval(), key

    def verify(self, suspect: Suspect, key: Key) -> Verdict:
        payload, image = Payload.of(key), image_of(key)
        found = payload.read(suspect.model)
        r = correlation(payload.signal, found)
        details = _legibility(payload.signal, found, image)
        return Verdict.gauss(r, len(found), access=self.access, paper=r >= self.visible, details=details)

    def randomise_key(self, key: Key, prf: Prf) -> Key:
        """Draw other positions for the same picture."""
        return replace(key, seed=prf.stream("seed", 32))

    def incompatible(self, suspect: Suspect, key: Key) -> str | None:
        return suspect.mismatch({layer.name: list(layer.shape) for layer in layers_of(key)})

    def trials(self, key: Key) -> tuple[int, None]:
        return image_of(key).size, None

    def carriers(self, model: nn.Module, key: Key) -> list[Carrier]:
        parts = Payload.of(key).parts
        return [Carrier(part.name, part.mask(model.get_parameter(part.name))) for part in parts]

    def forge(self, model: nn.Module, forger: Owner, key: Key) -> Key:
        """Read the positions of ``key`` and claim their values as the picture: r is 1 up to its 256 levels.

        The forger also chooses the scale, so that each layer's largest value is white. The picture looks like noise;
        only an owner's commitment to another picture that is older than the network refutes it.
        """
        payload = Payload.of(key)
        found = payload.read(model)
        stretch = {part.name: float(np.abs(found[part.places.numpy()]).max()) or 1.0 for part in payload.parts}
        for part in payload.parts:
            found[part.places.numpy()] /= stretch[part.name]
        layers = [replace(la, amplitude=la.amplitude * stretch.get(la.name, 1.0)) for la in layers_of(key)]
        forged = key.with_parts(public={"layers": [layer.described() for layer in layers]})
        return _with_image(forged, as_pixels(found, image_of(key).shape))

    def _valley(self, recipe: Recipe) -> ValleySettings:
        usual = min(10, recipe.epochs // 4) if self.from_scratch else 0
        return ValleySettings(
            objective=self.objective,
            lambda1=_LAMBDA[self.objective] if self.lambda1 is None else self.lambda1,
            replicas=self.replicas,
            sigma_rel=self.sigma_rel,
            warm_up=usual if self.warm_up is None else self.warm_up,
        )

    def _picture(self, workload: str, layers: list[PayloadLayer]) -> np.ndarray:
        """Return (side, side, colours) uint8: the largest emblem within the share."""
        n_weights, channels = sum(layer.size for layer in layers), 3 if self.colours == "rgb" else 1
        side = math.isqrt(int(self.share * n_weights) // channels)
        if side < MIN_SIDE:
            enough = math.ceil(1e4 * channels * MIN_SIDE**2 / n_weights) / 1e4
            raise ValueError(
                f"expected a share of {workload}'s {n_weights} weights with room for {MIN_SIDE}x{MIN_SIDE} pixels of "
                f"{channels} values, got {self.share}; raise share to {enough:.4f} or more"
                + (", or set colours to grey" if channels > 1 else "")
            )
        return emblem(side, channels)


def steepness(
    model: nn.Module,
    task: Workload,
    key: Key,
    samples: Samples,
    *,
    n_replicas: int = 16,
    seed: int = 0,
    sigma_rel: float = 1.0,
) -> float:
    """Measure mean_r L(Gamma_r) - L(Gamma_0) of a marked network over ``samples``, in eval mode.

    The losses are not capped. The key determines the scalars in which the replicas differ.
    """
    payload = Payload.of(key).to(task.device)
    return mean_rise(Replicas(model, task, payload, sigma_rel), samples, n_replicas, seed)


def correlation(signal: np.ndarray, found: np.ndarray) -> float:
    """Return Pearson's r of two float64 arrays (n,); 0 where ``found`` does not vary or is not finite."""
    if not np.isfinite(found).all() or np.ptp(found) == 0 or np.ptp(signal) == 0:
        return 0.0
    a, b = signal - signal.mean(), found - found.mean()
    return float((a @ b) / math.sqrt((a @ a) * (b @ b)))


def _legibility(signal: np.ndarray, found: np.ndarray, image: np.ndarray) -> dict[str, Json]:
    """Measure the decoded picture: errors of values, signs and pixels, and the pixels themselves.

    rmse is in units of s's root mean square; psnr in dB, None where no pixel is wrong; decoded holds the bytes of a
    (h, w, 3) uint8 picture in base64.
    """
    readable = np.nan_to_num(found, posinf=1.0, neginf=-1.0)
    decoded = as_pixels(readable, image.shape)
    mse = float(np.square(decoded.astype(float) - image).mean())
    shown = np.broadcast_to(decoded, (*image.shape[:2], 3))
    return {
        "rmse": float(np.sqrt(np.square(readable - signal).mean() / np.square(signal).mean())),
        "psnr": 10 * math.log10(255**2 / mse) if mse > 0 else None,
        "bit_error_rate": float(((readable >= 0) != (signal >= 0)).mean()),
        "decoded": base64.b64encode(shown.tobytes()).decode("ascii"),
        "decoded_shape": [*image.shape[:2], 3],
    }


def _with_image(key: Key, image: np.ndarray) -> Key:
    """Return ``key`` with a picture (h, w, channels) uint8, and its digest in the public part."""
    digest = hashlib.sha256(image.tobytes()).hexdigest()
    return key.with_parts(
        public={"image_shape": list(image.shape), "image_sha256": digest},
        secret={"image": torch.from_numpy(np.ascontiguousarray(image))},
    )
