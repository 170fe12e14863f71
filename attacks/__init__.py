"""Attacks on watermarks. This file imports no plugin; names become classes when they are used."""

ATTACKS: dict[str, str] = {
    "none": "attacks.none:Nothing",
    "finetune": "attacks.finetune:FineTune",
    "prune_weights": "attacks.pruning:PruneWeights",
    "prune_neurons": "attacks.pruning:PruneNeurons",
    "fine_prune": "attacks.pruning:FinePrune",
    "quantize": "attacks.quantize:Quantize",
    "weight_noise": "attacks.weight_noise:WeightNoise",
    "wild": "attacks.wild:Wild",
    "refit": "attacks.refit:Refit",
    "distill": "attacks.distill:Distill",
    "transfer": "attacks.transfer:Transfer",
    "permute": "attacks.rewriting:Permute",
    "rescale": "attacks.rewriting:Rescale",
    "overwrite": "attacks.overwrite:Overwrite",
    "piracy": "attacks.piracy:PlantTriggers",
    "spoil": "attacks.spoil:Spoil",
    "reverse_serial": "attacks.reverse_serial:ReverseSerial",
    "ambiguity": "attacks.ambiguity:Ambiguity",
    "chain": "attacks.chain:Chain",
}
"""Name in a spec -> "module:Class". Third parties add theirs with the entry point group ``wmarena.attacks``."""
