"""Kinds of parameters (embeddings, hidden matrices, decayed ones) and their depth in a network."""

import re
from collections import defaultdict

from torch import Tensor, nn

_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_EMBEDDING_NAME = re.compile(r"emb|token|pos")
_NUMBERED = re.compile(r"(.*?)(\d+)")


def param_names(net: nn.Module) -> dict[nn.Parameter, list[str]]:
    """Return every parameter once, with all its names: a tied parameter has several.

    Args:
        net: the network.

    Returns:
        Names by parameter, in the order in which the network defines them.
    """
    names: dict[nn.Parameter, list[str]] = defaultdict(list)
    for name, param in net.named_parameters(remove_duplicate=False):
        names[param].append(name)
    return dict(names)


def is_embedding(net: nn.Module, name: str) -> bool:
    """Return whether a parameter is an embedding table, or a learned position or token.

    Args:
        net: the network.
        name: the parameter's name in it.

    Returns:
        True for weights of ``nn.Embedding``, and for parameters without a layer of their own whose name holds "emb",
        "token" or "pos", such as ``pos_embed``.
    """
    owner, _, leaf = name.rpartition(".")
    if isinstance(net.get_submodule(owner), _EMBEDDINGS):
        return True
    return "weight" not in leaf and _EMBEDDING_NAME.search(leaf) is not None


def is_decayed(net: nn.Module, name: str, param: Tensor) -> bool:
    """Return whether weight decay applies: to matrices and kernels, not to biases, normalization and embeddings.

    Args:
        net: the network.
        name: the parameter's name in it.
        param: the parameter.

    Returns:
        False for vectors, such as biases and layer scales, for parameters named bias, those of layers whose class has
        "Norm" in its name, and embeddings.
    """
    owner, _, leaf = name.rpartition(".")
    in_norm = "norm" in type(net.get_submodule(owner)).__name__.lower()
    if "bias" in leaf or in_norm or is_embedding(net, name):
        return False
    if "weight" in leaf:
        return param.ndim > 1  # a Linear's weight of shape (1, c) is a matrix all the same
    # ConvNeXt's layer scale has shape (c, 1, 1), yet is a vector.
    return sum(size > 1 for size in param.shape) > 1


def hidden_matrices(net: nn.Module) -> set[nn.Parameter]:
    """Return the parameters that Muon is for: those that map hidden units to hidden units.

    Args:
        net: the network.

    Returns:
        The two-dimensional weights that are neither embeddings nor the output head's.
    """
    head = output_head(net)

    def is_hidden(name: str) -> bool:
        owner, _, leaf = name.rpartition(".")
        return "weight" in leaf and owner != head and not is_embedding(net, name)

    matrices = set()
    for param, names in param_names(net).items():
        if param.ndim == 2 and all(is_hidden(name) for name in names):
            matrices.add(param)
    return matrices


def output_head(net: nn.Module) -> str | None:
    """Return the name of the output layer, judged by the order of definition.

    Args:
        net: the network.

    Returns:
        The last module that owns a matrix or kernel, or None where that module is part of a repeated block.
    """
    last = None
    for name, module in net.named_modules():
        if any(param.ndim > 1 for param in module.parameters(recurse=False)):
            last = name
    if last is None or any(last.startswith(f"{block}.") for block in repeated_blocks(net)):
        return None
    return last


def repeated_blocks(net: nn.Module) -> list[str]:
    """Return the names of the numbered blocks or stages that the network is a stack of.

    Siblings whose names differ only in a number at the end are candidates: ``blocks.0 ... blocks.11``,
    ``encoder_layer_0 ...``, ``layer1 ... layer4``. Chosen is the longest list among those that hold most of the
    tensors (75 %), else the one that holds more than any other, if that is at least half.

    Args:
        net: the network.

    Returns:
        The members' names by number, those without parameters left out; empty if the network is no such stack.
    """
    siblings: dict[tuple[str, str], list[tuple[int, str, int]]] = defaultdict(list)
    for parent, module in net.named_modules():
        for child_name, child in module.named_children():
            numbered = _NUMBERED.fullmatch(child_name)
            tensors = len(list(child.parameters()))
            if numbered and tensors:
                name = f"{parent}.{child_name}" if parent else child_name
                siblings[parent, numbered[1]].append((int(numbered[2]), name, tensors))
    total = len(list(net.parameters()))
    stacks: list[tuple[int, list[str]]] = []  # number of tensors, names of the members
    for members in siblings.values():
        if len(members) < 2:
            continue
        tensors = sum(count for *_, count in members)
        stacks.append((tensors, [name for _, name, _ in sorted(members)]))
    # Of several nested stacks that hold most of the network, the finest one.
    main_stacks = [names for tensors, names in stacks if tensors >= 0.75 * total]
    if main_stacks:
        return max(main_stacks, key=len)
    tensors, names = max(stacks, default=(0, []))
    if tensors >= 0.5 * total:
        return names
    return []


def layer_ids(net: nn.Module) -> dict[str, int]:
    """Return the depth of every parameter: 0 for stem and embeddings, 1, 2, ... for blocks, the largest for the head.

    Args:
        net: a stack of numbered blocks or stages, see :func:`repeated_blocks`. What is defined before the first block
            is the stem, what is defined after the last one the head.

    Returns:
        Parameter name to layer id; tied parameters under all their names, with the id of the first.

    Raises:
        ValueError: most of the network is no stack of numbered blocks.
    """
    members = repeated_blocks(net)
    if not members:
        raise ValueError(
            f"layer_decay needs numbered blocks or stages (blocks.0, layer1, ...), but {type(net).__name__} has none"
        )
    numbers = {}
    last = 0
    for member in members:
        has_matrix = any(param.ndim > 1 for param in net.get_submodule(member).parameters())
        # A member without a matrix or kernel, such as VGG's norms, belongs to the one before it.
        if has_matrix or last == 0:
            last += 1
        numbers[f"{member}."] = last
    ids: dict[str, int] = {}
    reached = 0
    for names in param_names(net).values():
        inside = [number for member, number in numbers.items() if names[0].startswith(member)]
        if inside:
            reached = inside[0]
        elif reached == last:
            reached += 1
        depth = reached
        if is_embedding(net, names[0]) and not inside:
            depth = 0  # with the stem, wherever it is defined
        ids.update(dict.fromkeys(names, depth))
    return ids
