"""Workloads: what is protected. This file imports no plugin; names become classes when they are used."""

WORKLOADS: dict[str, str] = {
    "digits_mlp": "experiments.workloads.digits:DigitsMlp",
    "digits_cnn": "experiments.workloads.digits:DigitsCnn",
    "mnist_lenet5": "experiments.workloads.mnist:MnistLeNet5",
    "fashion_lenet5": "experiments.workloads.mnist:FashionLeNet5",
    "mnist_resnet18": "experiments.workloads.mnist_resnet:MnistResNet18",
    "fashion_resnet18": "experiments.workloads.mnist_resnet:FashionResNet18",
    "mnist_dsn": "experiments.workloads.mnist_dsn:MnistDsn",
    "gtsrb_dsn": "experiments.workloads.gtsrb:GtsrbDsn",
    "cifar10_resnet18": "experiments.workloads.cifar:Cifar10ResNet18",
    "cifar10_allcnn": "experiments.workloads.cifar10_allcnn:Cifar10AllCnn",
    "cifar10_resnet32": "experiments.workloads.cifar10_resnet32:Cifar10ResNet32",
}
"""Name in a spec -> "module:Class". Third parties add theirs with the entry point group ``wmarena.workloads``."""
